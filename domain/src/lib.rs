//! Values and rules of sending verification codes.
//!
//! Nothing here waits, reads a clock, does IO or knows a wire format: time and randomness are
//! arguments, and every rim converts these types to and from a format of its own.

mod code;
mod message;
mod phone;
mod template;

pub use code::{Code, CodeLength, InvalidCode, InvalidCodeLength};
pub use message::{Message, MessageId, Validity};
pub use phone::{InvalidPhoneNumber, PhoneNumber};
pub use template::{InvalidSmsTemplate, SmsTemplate};
