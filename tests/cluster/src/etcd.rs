//! etcd, asked past the API server: by JSON over HTTP, which it takes beside gRPC.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netlb_testnode::netns::NetNs;
use serde_json::{Value, json};

/// Where it answers, on the host that it runs on.
pub const PORT: u16 = 2379;
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the etcd that runs in `net` forget all history.
///
/// # Errors
/// What etcd says.
pub fn compact(net: &NetNs) -> Result<()> {
    let put = json!({"key": "bmV0bGI=", "value": "eA=="});
    let done = ask(net, "/v3/kv/put", &put)?;
    let revision = done.pointer("/header/revision").context("etcd names no revision")?;
    ask(net, "/v3/kv/compaction", &json!({"revision": revision, "physical": true})).map(drop)
}

fn ask(net: &NetNs, path: &str, body: &Value) -> Result<Value> {
    let body = body.to_string();
    let text = net.run(|| -> Result<String> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let mut stream = TcpStream::connect(at).context("etcd does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").context("etcd says nothing")?;
    ensure!(head.contains(" 200 "), "etcd says {text}");
    serde_json::from_str(body).with_context(|| format!("etcd says {text}"))
}
