use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::config::Config;

/// Fails unless the service on this machine is ready.
pub fn healthcheck(config: &Config, default_port: u16) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let port = config.process.metrics_port.unwrap_or(default_port);
    let mut unreachable = None;
    for address in config.process.metrics_hosts.from_here() {
        let address = SocketAddr::from((address, port));
        let context = || format!("http://{address}/readyz");
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return ask_whether_ready(stream, PATIENCE).with_context(context),
            Err(error) => {
                let error = anyhow::Error::from(error).context("connect").context(context());
                // The service most likely listens on the first address.
                unreachable.get_or_insert(error);
            }
        }
    }
    Err(unreachable.context("no address to ask")?)
}

fn ask_whether_ready(mut stream: TcpStream, patience: Duration) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    bail!("{}", answer.lines().last().unwrap_or("no answer"));
}
