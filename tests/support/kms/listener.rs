//! The listening socket: refuses connections and takes them again, without giving up its port.
//!
//! The trap: a port that is closed and bound again may meanwhile be someone else's, and a client that keeps connecting
//! to a closed local port can end up connected to itself. On Linux `shutdown` of a listening socket ends listening
//! (and wakes whoever waits in `accept`, with EINVAL) but keeps the port, and `listen` takes it up again.

use crate::sys::Port;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

/// More than any test connects at one time.
const BACKLOG: i32 = 4096;

pub(super) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// Below the kernel's ephemeral range, and ours within this process.
    _port: Port,
}

impl Listener {
    pub fn bind() -> Self {
        // Another process may take the port between our look and our bind.
        for _ in 0..100 {
            let port = Port::reserve();
            if let Ok(socket) = TcpListener::bind(("127.0.0.1", port.number())) {
                let address = socket.local_addr().expect("a bound socket has an address");
                let listener = Self { socket, address, _port: port };
                listener.listen();
                return listener;
            }
        }
        panic!("a hundred ports in a row were taken by others");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn accept(&self) -> io::Result<TcpStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }

    /// From now on connections are refused.
    pub fn refuse(&self) {
        // SAFETY: shutdown takes plain integers; the descriptor is open as long as `self.socket`.
        let result = unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RD) };
        let error = io::Error::last_os_error();
        // ENOTCONN: it was not listening.
        assert!(
            result == 0 || error.raw_os_error() == Some(libc::ENOTCONN),
            "cannot stop listening: {error}"
        );
    }

    /// Takes connections (again).
    pub fn listen(&self) {
        // SAFETY: as above.
        let result = unsafe { libc::listen(self.socket.as_raw_fd(), BACKLOG) };
        assert_eq!(result, 0, "cannot listen: {}", io::Error::last_os_error());
    }
}
