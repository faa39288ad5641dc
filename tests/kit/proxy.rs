//! A wire that can be cut: a TCP proxy in front of a server, which drops answers on the way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A proxy; it ends with the runtime that it was started on.
pub struct Proxy {
    /// The loopback port to connect to.
    pub port: u16,
    /// Answers in a thousand that are lost together with their connection.
    pub lost_per_mille: Arc<AtomicU32>,
    /// Answers lost so far.
    pub cuts: Arc<AtomicU32>,
}

impl Proxy {
    /// A proxy in front of a loopback port, which loses nothing yet.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let proxy = Self { port, lost_per_mille: Arc::default(), cuts: Arc::default() };
        let (lost_per_mille, cuts) = (proxy.lost_per_mille.clone(), proxy.cuts.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, server, lost_per_mille.clone(), cuts.clone()));
            }
        });
        proxy
    }
}

async fn forward(mut client: TcpStream, server: u16, lost_per_mille: Arc<AtomicU32>, cuts: Arc<AtomicU32>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(n) if n > 0 && server.write_all(&asked[..n]).await.is_ok() => {}
                _ => return,
            },
            read = server.read(&mut answered) => {
                let lost = rand::random_range(0..1_000) < lost_per_mille.load(Ordering::Relaxed);
                cuts.fetch_add(u32::from(lost), Ordering::Relaxed);
                match read {
                    Ok(n) if n > 0 && !lost && client.write_all(&answered[..n]).await.is_ok() => {}
                    // The server has done its work; nobody will hear of it.
                    _ => return,
                }
            }
        }
    }
}
