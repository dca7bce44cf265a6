//! A worker's address as people write it: `tcp://HOST:PORT[#FINGERPRINT]`.

use std::fmt;
use std::str::FromStr;

use super::WorkerAddress;

const FORMS: &str =
    "tcp://HOST:PORT[#FINGERPRINT], such as tcp://10.0.0.7:7077 or tcp://[::1]:7077";

impl FromStr for WorkerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match text {
                "mdns" => not_yet("mdns"),
                _ => format!("expected {FORMS}"),
            });
        };
        match scheme {
            "tcp" => parse_tcp(rest),
            "ssh" | "mdns" | "registry" | "listen" | "reapi" => Err(not_yet(scheme)),
            _ => Err(format!("unknown kind of address `{scheme}://`; expected {FORMS}")),
        }
    }
}

fn not_yet(scheme: &str) -> String {
    format!("this version does not support `{scheme}` addresses yet; expected {FORMS}")
}

fn parse_tcp(rest: &str) -> Result<WorkerAddress, String> {
    let (place, key) = match rest.split_once('#') {
        Some((place, key)) => {
            let key = key.parse().map_err(|error| format!("what follows the `#`: {error}"))?;
            (place, Some(key))
        }
        None => (rest, None),
    };
    let (host, port) =
        place.rsplit_once(':').ok_or_else(|| format!("the port is missing; expected {FORMS}"))?;
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
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(WorkerAddress::Tcp { host: host.to_owned(), port, key }),
        _ => Err(format!("`{port}` is no port from 1 to 65535; expected {FORMS}")),
    }
}

impl fmt::Display for WorkerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Tcp { host, port, key } = self;
        match host.contains(':') {
            true => write!(f, "tcp://[{host}]:{port}")?,
            false => write!(f, "tcp://{host}:{port}")?,
        }
        key.iter().try_for_each(|key| write!(f, "#{key}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE";

    #[test]
    fn accepted_addresses_print_as_they_were_written() {
        let pinned = format!("tcp://[::1]:65535#{KEY}");
        for text in ["tcp://build-1:7077", "tcp://10.0.0.7:1", &pinned] {
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
            ("ssh://h", "does not support `ssh` addresses yet"),
            ("mdns", "does not support `mdns` addresses yet"),
            ("registry://h:1", "does not support `registry`"),
            ("listen://0.0.0.0:1", "does not support `listen`"),
            ("reapi://h:1", "does not support `reapi`"),
            ("udp://h:1", "unknown kind"),
        ];
        for (text, expected) in refused {
            let message = text.parse::<WorkerAddress>().expect_err(text);
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
