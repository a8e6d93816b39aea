//! Where KMS may be asked: the check of `hyperion_vault.kms_endpoint_url`, and the same check once more on every request
//! just before it is sent, since the environment and profile files can name endpoints too. Pure but for the hook.
//!
//! The trap it avoids: data keys in clear on a network. Answers of GenerateDataKey and Decrypt carry the key itself;
//! TLS is what protects it, so plain HTTP is for this machine alone.

use std::net::IpAddr;

use aws_sdk_kms::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use hyperion_vault_core::secret::InvalidArgument;

/// Checks an endpoint: `https://host[:port][/path]`, or `http://` to a loopback address.
pub fn check(url: &str) -> Result<(), InvalidArgument> {
    let bad = |why: &str| {
        InvalidArgument::new(format!("not an endpoint: {why}"))
            .hint("Give https://host, or http:// with a loopback address for tests.")
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    if !rest.bytes().all(|byte| byte.is_ascii_graphic()) || rest.contains(['?', '#', '\\']) {
        return Err(bad("it has characters that it may not have"));
    }
    if authority.contains('@') {
        return Err(bad("it carries a user name"));
    }
    let host = host(authority).ok_or_else(|| bad("its host or port is malformed"))?;
    match scheme {
        "https" => Ok(()),
        "http" if is_loopback(host) => Ok(()),
        "http" => Err(bad("data keys must not cross a network without TLS")),
        _ => Err(bad("its scheme is neither https nor http")),
    }
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
fn host(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            (address, after.strip_prefix(':').or_else(|| after.is_empty().then_some("443"))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "443")),
    };
    (!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Stops a request that would leave this machine without TLS, whoever chose its endpoint.
#[derive(Debug)]
pub(super) struct TlsOnly;

/// The text by which `classify` knows this refusal.
pub(super) const NOT_TLS: &str = "the endpoint is not https";

impl Intercept for TlsOnly {
    fn name(&self) -> &'static str {
        "TlsOnly"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        check(context.request().uri()).map_err(|_| NOT_TLS.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_anywhere_plain_http_at_home_only() {
        for good in [
            "https://kms.eu-central-1.amazonaws.com",
            "https://vpce-0a-1.kms.eu-central-1.vpce.amazonaws.com/",
            "https://[2001:db8::1]:8443",
            "http://127.0.0.1:4000",
            "http://127.9.9.9",
            "http://[::1]:4000/path",
            "http://LOCALHOST:80",
        ] {
            assert_eq!(check(good).err(), None, "{good}");
        }
        for bad in [
            "",
            "kms.eu-central-1.amazonaws.com",
            "ftp://127.0.0.1",
            "http://kms.eu-central-1.amazonaws.com",
            "http://10.0.0.1:80",
            "http://127.0.0.1.example.com",
            "http://127.0.0.1@example.com",
            "http://example.com#@127.0.0.1",
            "http://example.com\\@127.0.0.1",
            "http://[::2]:80",
            "http://localhost.example.com",
            "https://",
            "https://:443",
            "https://host:port",
            "https://host:0",
            "https://ho st",
            "https://user:password@host",
            "https://[::1",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
