//! From where plaintext may be asked for: `hyperion_vault.allowed_ips` and a secret's own `allowed_ips`.
//!
//! Parsed when the setting changes (postmaster and every backend), asked in the backend on every read and
//! verify: asking allocates nothing. The traps it avoids: an address with two spellings (an IPv4 client on an
//! IPv6 socket is `::ffff:a.b.c.d`), a network with host bits that admits more than was meant, and an item that
//! nobody understood and that silently admits or refuses everyone. What cannot be parsed is refused, and what
//! is not listed is denied.
//!
//! **Grammar.** Items separated by commas, white space or both. An item is an address, a network in CIDR form
//! (no host bits set, as for the type `cidr`), `local` (Unix socket), `internal` (every background worker) or
//! `internal:TYPE` (background workers of that `bgw_type`, compared exactly). Double quotes, around the item or
//! a part of it, let a type hold blanks or commas: `internal:"my worker"`; `""` inside them is one quote.
//!
//! **IPv4-mapped IPv6.** `::ffff:a.b.c.d` is the IPv4 address, for clients and in lists; a listed network inside
//! `::ffff:0:0/96` is the IPv4 network of its last 32 bits. A shorter prefix (`::/0`) stays IPv6 and admits no
//! IPv4 client, as in `pg_hba.conf`: to admit everyone takes `0.0.0.0/0` and `::/0`.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::secret::{InvalidArgument, quoted};

/// Most items: far above any real list, and small enough to be parsed by every backend at a reload.
pub const MAX_ITEMS: usize = 1024;
/// Longest setting in bytes: `MAX_ITEMS` of the longest IPv6 networks with separators fit.
pub const MAX_BYTES: usize = 64 * 1024;
/// Longest `bgw_type`: the server's BGW_MAXLEN (96) less the terminating zero.
pub const MAX_WORKER_TYPE_BYTES: usize = 95;

/// Never admitted, whatever is listed: a parallel worker acts for its leader, which was asked itself, and the
/// others evaluate expressions of tables' owners.
const NEVER_ADMITTED: [&str; 3] = ["autovacuum launcher", "autovacuum worker", "parallel worker"];

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer<'a> {
    /// A client over the Unix socket.
    Local,
    /// A client over TCP.
    Ip(IpAddr),
    /// A background worker with a database connection; `bgw_type` as in `pg_stat_activity.backend_type`.
    Internal { bgw_type: &'a str },
    /// Autovacuum launcher or worker: never admitted.
    Autovacuum,
    /// Anything the extension could not place: never admitted.
    Unknown,
}

/// A parsed setting. The default is the empty list, which admits nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    /// Inclusive ranges, sorted, neither overlapping nor touching.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    local: bool,
    internal: bool,
    /// Sorted, distinct.
    worker_types: Vec<String>,
}

impl Allowlist {
    /// Parses the setting; the error names the first item that is not understood.
    pub fn parse(list: &str) -> Result<Self, InvalidArgument> {
        if list.len() > MAX_BYTES {
            return Err(InvalidArgument::new("address list is too long")
                .detail(format!("It has {} bytes; at most {MAX_BYTES} are allowed.", list.len())));
        }
        let mut parsed = Self::default();
        for (count, item) in split_items(list)?.into_iter().enumerate() {
            if count == MAX_ITEMS {
                return Err(InvalidArgument::new("address list has too many items")
                    .detail(format!("At most {MAX_ITEMS} are allowed."))
                    .hint("Combine neighbouring networks into larger ones."));
            }
            parsed.add(&item)?;
        }
        merge(&mut parsed.v4, |end| end.checked_add(1));
        merge(&mut parsed.v6, |end| end.checked_add(1));
        parsed.worker_types.sort_unstable();
        parsed.worker_types.dedup();
        Ok(parsed)
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether `peer` is listed; logarithmic in the number of items, no allocation.
    pub fn allows(&self, peer: &Peer<'_>) -> bool {
        match *peer {
            Peer::Local => self.local,
            Peer::Ip(address) => match address.to_canonical() {
                IpAddr::V4(a) => covers(&self.v4, u32::from(a)),
                IpAddr::V6(a) => covers(&self.v6, u128::from(a)),
            },
            Peer::Internal { bgw_type } => {
                !NEVER_ADMITTED.contains(&bgw_type)
                    && (self.internal
                        || self.worker_types.binary_search_by(|t| t.as_str().cmp(bgw_type)).is_ok())
            }
            Peer::Autovacuum | Peer::Unknown => false,
        }
    }

    fn add(&mut self, item: &str) -> Result<(), InvalidArgument> {
        if item.eq_ignore_ascii_case("local") {
            self.local = true;
        } else if item.eq_ignore_ascii_case("internal") {
            self.internal = true;
        } else if let Some(worker) = strip_prefix_ignore_case(item, "internal:") {
            self.worker_types.push(parse_worker_type(item, worker)?);
        } else {
            match parse_network(item)? {
                IpNet::V4(net) => self.v4.push((net.network().into(), net.broadcast().into())),
                IpNet::V6(net) => self.v6.push((net.network().into(), net.broadcast().into())),
            }
        }
        Ok(())
    }
}

/// Whether a secret's own list admits `peer`, in addition to the setting, never instead of it.
///
/// Only TCP clients inside one of the networks: sockets and background workers have no address to compare and
/// are refused, and so is everyone when the list is empty. A secret without a list (SQL NULL) is not asked.
pub fn narrow(per_secret: &[IpNet], peer: &Peer<'_>) -> bool {
    let Peer::Ip(address) = *peer else {
        return false;
    };
    let address = address.to_canonical();
    per_secret.iter().any(|&net| unmapped(net).contains(&address))
}

/// One address (a network of one) or CIDR network, with an IPv4-mapped one turned into IPv4.
pub fn parse_network(item: &str) -> Result<IpNet, InvalidArgument> {
    if item.contains('%') {
        return Err(refused(item)
            .detail("It carries a zone identifier.")
            .hint("Write the address without the part from % on."));
    }
    let (address, prefix) = match item.split_once('/') {
        None => (item, None),
        Some((address, prefix)) => (address, Some(prefix)),
    };
    let address: IpAddr = address.parse().map_err(|_| refused(item).hint(WHAT_TO_WRITE))?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => width,
        Some(text) => parse_prefix(text, width).ok_or_else(|| {
            refused(item)
                .detail(format!("A prefix length is a number from 0 to {width} in this address family."))
        })?,
    };
    let net = IpNet::new(address, prefix).map_err(|_| refused(item))?;
    if net.network() != address {
        return Err(refused(item)
            .detail("It has bits set to the right of the prefix.")
            .hint(format!("Write {} for the network or {address} for the one address.", net.trunc())));
    }
    Ok(unmapped(net))
}

const WHAT_TO_WRITE: &str = "Use IP addresses, networks such as 10.0.0.0/8 (0.0.0.0/0 and ::/0 admit every address), \
                             \"local\", \"internal\" or \"internal:worker type\".";

fn refused(item: &str) -> InvalidArgument {
    InvalidArgument::new(format!("invalid item {} in address list", quoted(item)))
}

fn parse_prefix(text: &str, width: u8) -> Option<u8> {
    // Digits only and no leading zero: `u8::from_str` takes "+8", and "08" is octal to some readers.
    if !text.bytes().all(|b| b.is_ascii_digit()) || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok().filter(|&n: &u8| n <= width)
}

fn unmapped(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Some(address) = Ipv6Addr::to_ipv4_mapped(&v6.addr())
        && let Ok(v4) = Ipv4Net::new(address, length)
    {
        return IpNet::V4(v4);
    }
    net
}

fn parse_worker_type(item: &str, worker: &str) -> Result<String, InvalidArgument> {
    if worker.is_empty() {
        return Err(refused(item).hint("Name the worker type after the colon, or write internal for all."));
    }
    if worker.len() > MAX_WORKER_TYPE_BYTES {
        return Err(refused(item)
            .detail(format!("A background worker type has at most {MAX_WORKER_TYPE_BYTES} bytes.")));
    }
    if worker.chars().any(char::is_control) {
        return Err(refused(item).detail("It contains a control character."));
    }
    if NEVER_ADMITTED.contains(&worker) {
        return Err(refused(item)
            .detail("Processes of this type are never admitted.")
            .hint("Remove the item."));
    }
    Ok(worker.to_owned())
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Items with their quotes removed. Separators may repeat, so that a list can be laid out over lines.
fn split_items(list: &str) -> Result<Vec<String>, InvalidArgument> {
    let mut items = Vec::new();
    let mut chars = list.chars().peekable();
    // `Some` from the first character or quote of an item on: a quoted nothing is an item, and refused later.
    let mut item: Option<String> = None;
    while let Some(c) = chars.next() {
        match c {
            ',' | ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => items.extend(item.take()),
            '"' => {
                let text = item.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') if chars.next_if_eq(&'"').is_some() => text.push('"'),
                        Some('"') => break,
                        Some(c) => text.push(c),
                        None => {
                            return Err(refused(text)
                                .detail("A double quote is not closed.")
                                .hint("Close the quote, and double a quote that belongs to the name."));
                        }
                    }
                }
            }
            c => item.get_or_insert_default().push(c),
        }
    }
    items.extend(item);
    Ok(items)
}

/// Sorts inclusive ranges and joins those that overlap or touch; `after` is the successor, `None` at the top.
fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>, after: impl Fn(T) -> Option<T>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let joins = after(kept.1).is_none_or(|limit| next.0 <= limit);
        if joins {
            kept.1 = kept.1.max(next.1);
        }
        joins
    });
}

fn covers<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|&(start, _)| start <= address);
    after > 0 && address <= ranges[after - 1].1
}

#[cfg(test)]
mod tests;
