//! Address families, and one thing for each.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Index, IndexMut};

use stun_types::AddressFamily;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// An address's.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// A socket address's.
    pub fn of_socket(address: SocketAddr) -> Self {
        Self::of(address.ip())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl From<AddressFamily> for Family {
    fn from(family: AddressFamily) -> Self {
        match family {
            AddressFamily::IPV4 => Self::V4,
            AddressFamily::IPV6 => Self::V6,
        }
    }
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPV4,
            Family::V6 => Self::IPV6,
        }
    }
}

/// One thing for each address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: T,
}

impl<T> ByFamily<T> {
    /// Both, IPv4's first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        [(Family::V4, &self.v4), (Family::V6, &self.v6)].into_iter()
    }
}

impl<T> ByFamily<Option<T>> {
    /// Those that are there, IPv4's first.
    pub fn present(&self) -> impl Iterator<Item = (Family, &T)> {
        self.iter()
            .filter_map(|(family, thing)| Some((family, thing.as_ref()?)))
    }
}

impl ByFamily<Option<IpAddr>> {
    /// The first address of each family.
    pub fn first_of(ips: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut first = Self::default();
        for ip in ips {
            first[Family::of(ip)].get_or_insert(ip);
        }
        first
    }
}

impl<T> Index<Family> for ByFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for ByFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}
