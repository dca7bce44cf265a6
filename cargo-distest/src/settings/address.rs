//! A worker's address as people write it: `tcp://HOST:PORT[#KEY]`, `ssh://[USER@]HOST[:PORT]`,
//! `listen://IP:PORT`, `registry://HOST:PORT[#KEY]`, `mdns`.

use std::fmt;
use std::str::FromStr;

use distest_worker::identity::PublicKey;

use super::WorkerAddress;

const FORMS: &str = "tcp://HOST:PORT[#KEY], ssh://[USER@]HOST[:PORT], listen://IP:PORT, \
                     registry://HOST:PORT[#KEY] or mdns, such as tcp://10.0.0.7:7077 or \
                     tcp://[::1]:7077";

impl FromStr for WorkerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match text {
                "mdns" => return Ok(Self::Mdns),
                _ => format!("expected {FORMS}"),
            });
        };
        match scheme {
            "tcp" => {
                let (host, port, key) = parse_place(rest)?;
                Ok(Self::Tcp { host, port, key })
            }
            "registry" => {
                let (host, port, key) = parse_place(rest)?;
                Ok(Self::Registry { host, port, key })
            }
            "ssh" => parse_ssh(rest),
            "listen" => rest.parse().map(Self::Listen).map_err(|_| {
                format!("`{rest}` is no IP address with a port, such as 0.0.0.0:7077")
            }),
            "reapi" => Err(not_yet(scheme)),
            _ => Err(format!("unknown kind of address `{scheme}://`; expected {FORMS}")),
        }
    }
}

fn not_yet(scheme: &str) -> String {
    format!("this version does not support `{scheme}` addresses yet; expected {FORMS}")
}

fn parse_place(rest: &str) -> Result<(String, u16, Option<PublicKey>), String> {
    let (place, key) = match rest.split_once('#') {
        Some((place, key)) => {
            let key = key.parse().map_err(|error| format!("what follows the `#`: {error}"))?;
            (place, Some(key))
        }
        None => (rest, None),
    };
    let (host, port) = host_and_port(place)?;
    let port = port.ok_or_else(|| format!("the port is missing; expected {FORMS}"))?;
    Ok((host, port, key))
}

fn parse_ssh(rest: &str) -> Result<WorkerAddress, String> {
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    let (host, port) = host_and_port(place)?;
    // ssh would take either for an option.
    for word in user.into_iter().chain([host.as_str()]) {
        if word.is_empty() || word.starts_with('-') || word.contains(char::is_whitespace) {
            return Err(format!("`{word}` is no user or host for ssh; expected {FORMS}"));
        }
    }
    Ok(WorkerAddress::Ssh { user: user.map(str::to_owned), host, port })
}

fn host_and_port(place: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match place.rsplit_once(':') {
        // The last colon of an IPv6 address in brackets.
        Some((_, port)) if port.ends_with(']') => (place, None),
        Some((host, port)) => (host, Some(port)),
        None => (place, None),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address,
        None if host.contains(':') => {
            return Err(format!("an IPv6 address needs brackets; expected {FORMS}"));
        }
        None => host,
    };
    if host.is_empty() || host.contains(['/', '@', '[', ']', ' ']) {
        return Err(format!("`{host}` is no host name or IP address; expected {FORMS}"));
    }
    let port = port.map(|port| match port.parse::<u16>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("`{port}` is no port from 1 to 65535; expected {FORMS}")),
    });
    Ok((host.to_owned(), port.transpose()?))
}

impl fmt::Display for WorkerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write_host = |f: &mut fmt::Formatter<'_>, host: &str| match host.contains(':') {
            true => write!(f, "[{host}]"),
            false => f.write_str(host),
        };
        match self {
            Self::Tcp { host, port, key } | Self::Registry { host, port, key } => {
                let registry = matches!(self, Self::Registry { .. });
                f.write_str(if registry { "registry://" } else { "tcp://" })?;
                write_host(f, host)?;
                write!(f, ":{port}")?;
                key.iter().try_for_each(|key| write!(f, "#{key}"))
            }
            Self::Ssh { user, host, port } => {
                f.write_str("ssh://")?;
                user.iter().try_for_each(|user| write!(f, "{user}@"))?;
                write_host(f, host)?;
                port.iter().try_for_each(|port| write!(f, ":{port}"))
            }
            Self::Listen(address) => write!(f, "listen://{address}"),
            Self::Mdns => f.write_str("mdns"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE";

    #[test]
    fn accepted_addresses_print_as_they_were_written() {
        let pinned = format!("tcp://[::1]:65535#{KEY}");
        for text in [
            "tcp://build-1:7077",
            "tcp://10.0.0.7:1",
            &pinned,
            "ssh://h",
            "ssh://me@h:2222",
            "ssh://[fe80::1]",
            "ssh://me@[fe80::1]:22",
            "listen://0.0.0.0:7077",
            "listen://[::]:0",
            "registry://h:7",
            &format!("registry://[::1]:7#{KEY}"),
            "mdns",
        ] {
            assert_eq!(text.parse::<WorkerAddress>().unwrap().to_string(), text);
        }
        assert_eq!(
            "tcp://[::1]:80".parse(),
            Ok(WorkerAddress::Tcp { host: "::1".to_owned(), port: 80, key: None })
        );
    }

    #[test]
    fn refusals_say_what_is_accepted() {
        let refused = [
            ("localhost:7077", "expected tcp://"),
            ("tcp://host", "port is missing"),
            ("tcp://host:0", "no port"),
            ("tcp://host:70000", "no port"),
            ("tcp://:80", "no host name"),
            ("tcp://::1:80", "brackets"),
            ("tcp://u@h:80", "no host name"),
            ("tcp://h:80#", "ed25519:"),
            ("tcp://h:80#SHA256:abc", "ed25519:"),
            ("ssh://-oProxyCommand=x", "no user or host"),
            ("ssh://-l@h", "no user or host"),
            ("ssh://me@-h", "no user or host"),
            ("ssh://@h", "no user or host"),
            ("ssh://", "no host name"),
            ("ssh://h:0", "no port"),
            ("listen://host:1", "no IP address"),
            ("mdns://", "unknown kind"),
            ("registry://h", "port is missing"),
            ("reapi://h:1", "does not support `reapi`"),
            ("udp://h:1", "unknown kind"),
        ];
        for (text, expected) in refused {
            let message = text.parse::<WorkerAddress>().expect_err(text);
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
