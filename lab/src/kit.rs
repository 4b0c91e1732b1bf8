//! Shared by all runs: the service under test and its neighbours, clients, a gateway, a recorder.

pub mod clients;
pub mod clock;
pub mod cluster;
pub mod environment;
pub mod gateway;
pub mod gateways_file;
pub mod http;
pub mod kafka;
pub mod load;
pub mod phones;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod proxy;
pub mod recorder;
pub mod tables;
pub mod tally;
pub mod testbed;
