//! The outcome that a `command_status` stands for.
//!
//! The names and the meanings are those of SMPP 3.4 §5.1.3. A response with an error carries no
//! message id, so the SMSC did not accept the message: no status is ambiguous.

use application::ports::SendError;

pub(super) const OK: u32 = 0x00;
pub(super) const INVALID_COMMAND_LENGTH: u32 = 0x02;
pub(super) const INVALID_COMMAND_ID: u32 = 0x03;
/// "ESME Receiver Temporary App Error Code": the SMSC delivers again later.
pub(super) const TEMPORARY_ERROR: u32 = 0x64;
/// "ESME Receiver Permanent App Error Code": the SMSC does not deliver again.
pub(super) const PERMANENT_ERROR: u32 = 0x65;

/// Returns why the SMSC did not accept a message.
///
/// A status that the specification does not define counts as [`SendError::Unroutable`]: the meaning
/// is the vendor's own, the message was not accepted, and another gateway may take it.
pub(super) fn of_submit(status: u32) -> SendError {
    let detail = detail(status);
    match status {
        // RMSGQFUL, RTHROTTLED.
        0x14 | 0x58 => SendError::Throttled { detail, retry_after: None },
        // RINVBNDSTS, RSYSERR, RX_T_APPN.
        0x04 | 0x08 | 0x64 => SendError::Unavailable { detail, retry_after: None },
        // RINVDSTADR.
        0x0b => SendError::Rejected(detail),
        // The fields that depend on the settings and not on the message: the PDU itself, priority,
        // registered delivery, bind, source address, service type, esm_class, TON and NPI,
        // system type, replace flag, schedule, expiry, optional parameters.
        0x02
        | 0x03
        | 0x05..=0x07
        | 0x0a
        | 0x0d..=0x0f
        | 0x15
        | 0x42
        | 0x43
        | 0x48
        | 0x49
        | 0x50
        | 0x51
        | 0x53
        | 0x54
        | 0x61..=0x63
        | 0xc0..=0xc4 => SendError::Misconfigured(detail),
        // RINVMSGLEN, RSUBMITFAIL, RX_P_APPN, RX_R_APPN, RDELIVERYFAILURE, RUNKNOWNERR, and what
        // the specification reserves or leaves to vendors.
        _ => SendError::Unroutable(detail),
    }
}

/// Returns why the SMSC refused a bind.
pub(super) fn of_bind(status: u32) -> SendError {
    let detail = format!("the bind was refused with {}", detail(status));
    match status {
        // RINVCMDID (no transceivers here), RINVSRCADR, RBINDFAIL, RINVPASWD, RINVSYSID, TON and
        // NPI, RINVSYSTYP.
        0x03 | 0x0a | 0x0d..=0x0f | 0x48 | 0x49 | 0x50 | 0x51 | 0x53 => {
            SendError::Misconfigured(detail)
        }
        _ => SendError::Unavailable { detail, retry_after: None },
    }
}

/// Returns the status as a text.
fn detail(status: u32) -> String {
    format!("command_status 0x{status:02X}")
}

#[cfg(test)]
mod tests {
    use application::ports::OutcomeClass;

    use super::*;

    #[track_caller]
    fn check(statuses: &[u32], class: OutcomeClass) {
        for status in statuses {
            assert_eq!(of_submit(*status).class(), class, "0x{status:02x}");
        }
    }

    #[test]
    fn each_status_of_a_submit_has_a_class() {
        check(&[0x14, 0x58], OutcomeClass::Throttled);
        check(&[0x04, 0x08, 0x64], OutcomeClass::Unavailable);
        check(&[0x0b], OutcomeClass::Rejected);
        check(&[0x0a, 0x0d, 0x0e, 0x0f, 0x15, 0x48, 0x50, 0x62, 0xc4], OutcomeClass::Misconfigured);
        check(&[0x01, 0x45, 0x65, 0x66, 0xfe, 0xff], OutcomeClass::Unroutable);
        check(&[0x09, 0x100, 0x400, 0x4ff, u32::MAX], OutcomeClass::Unroutable);
    }

    #[test]
    fn a_bind_refused_for_its_credentials_is_misconfigured() {
        for status in [0x0d, 0x0e, 0x0f, 0x53] {
            assert_eq!(of_bind(status).class(), OutcomeClass::Misconfigured, "0x{status:02x}");
        }
        for status in [0x05, 0x08, 0x14, 0x58, 0x400] {
            assert_eq!(of_bind(status).class(), OutcomeClass::Unavailable, "0x{status:02x}");
        }
    }

    #[test]
    fn the_detail_is_the_status_in_hexadecimal() {
        assert_eq!(of_submit(0x58).detail(), "command_status 0x58");
        assert_eq!(of_bind(0x0e).detail(), "the bind was refused with command_status 0x0E");
    }
}
