//! A TCP proxy between the service and a server, which can delay, swallow, refuse or cut connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::{eventually, free_port};

/// The fault to apply to bytes and connections.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// Delays bytes in each direction.
    Delay(Duration),
    /// Accepts connections, like the kernel of a machine whose programs hang, but forwards nothing. Bytes arrive after the
    /// fault is over.
    BlackHole,
    /// Refuses new connections. Open connections stay open.
    Refuse,
    /// Stops the proxy.
    End,
}

/// Listens on 127.0.0.1 until dropped.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    fault: Mutex<Fault>,
    changed: Condvar,
    /// Both ends of each connection.
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn to(target: u16) -> Self {
        let shared = Shared {
            target,
            fault: Mutex::new(Fault::None),
            changed: Condvar::new(),
            open: Mutex::default(),
        };
        let proxy = Self { port: free_port(), shared: Arc::new(shared) };
        let (shared, port) = (Arc::clone(&proxy.shared), proxy.port);
        thread::spawn(move || shared.listen(port));
        proxy.await_listener(true);
        proxy
    }

    /// Sets the fault and returns after it has taken effect.
    pub fn set(&self, fault: Fault) {
        let before = std::mem::replace(&mut *self.shared.fault.lock().unwrap(), fault);
        self.shared.changed.notify_all();
        if (before == Fault::Refuse) != (fault == Fault::Refuse) {
            // The connection also wakes the listener.
            self.await_listener(fault != Fault::Refuse);
        }
    }

    /// Closes every connection.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn await_listener(&self, there: bool) {
        eventually(Duration::from_secs(5), "the proxy", || {
            (TcpStream::connect(("127.0.0.1", self.port)).is_ok() == there).then_some(())
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.fault.lock().unwrap() = Fault::End;
        self.shared.changed.notify_all();
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn listen(self: Arc<Self>, port: u16) {
        loop {
            match self.wait_while(Fault::Refuse) {
                Fault::End => return,
                _ => self.accept(&TcpListener::bind(("127.0.0.1", port)).unwrap()),
            }
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let (client, _) = listener.accept().unwrap();
            if matches!(self.fault(), Fault::Refuse | Fault::End) {
                return;
            }
            let shared = Arc::clone(self);
            thread::spawn(move || shared.connect(client));
        }
    }

    fn connect(self: Arc<Self>, client: TcpStream) {
        self.wait_while(Fault::BlackHole);
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.target)) else { return };
        let ends = [&client, &server].map(|stream| stream.try_clone().unwrap());
        ends.iter().for_each(|stream| stream.set_nodelay(true).unwrap());
        self.open.lock().unwrap().extend(ends);
        let (to_client, from_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let shared = Arc::clone(&self);
        thread::spawn(move || shared.copy(from_server, to_client));
        self.copy(client, server);
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Some(count) = from.read(&mut buffer).ok().filter(|count| *count > 0) {
            if let Fault::Delay(time) = self.wait_while(Fault::BlackHole) {
                thread::sleep(time);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        self.wait_while(Fault::BlackHole);
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    /// Waits while `fault` is set, and returns the next fault.
    fn wait_while(&self, fault: Fault) -> Fault {
        *self.changed.wait_while(self.fault.lock().unwrap(), |current| *current == fault).unwrap()
    }
}
