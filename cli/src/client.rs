//! The hub's HTTP API, spoken synchronously.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use cnova_shared::ids::Digest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, RequestBuilder};

use crate::routes;
use crate::settings::Settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The hub precompiles Wasm before it answers an `apply`, and gives up after 330 seconds: its word comes before ours.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(360);
/// No byte for so long: the line is dead. Uploads of any length may go on as long as they move.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(360);
/// Largest answer that is read: 100,000 nodes are about 60 MiB.
const ANSWER_BYTES: u64 = 256 * 1024 * 1024;
/// Most of an answer that is not understood to show.
const SHOWN_CHARS: usize = 300;

/// A hub.
pub(crate) struct Hub {
    agent: Agent,
    url: String,
    token: Option<String>,
}

/// The hub did not do what it was asked.
#[derive(Debug, Error)]
pub(crate) enum HubError {
    #[error(
        "the hub {url} cannot be reached: {reason}\n  start one with: cnova-hub run --config /etc/cnova/hub.toml\n  or name another with --hub URL, CNOVA_HUB, or hub = \"URL\" in ~/.config/cnova/config.toml"
    )]
    Unreachable { url: String, reason: String },
    #[error(
        "the hub {url} did not answer {request} in time ({reason}); it may still be at work: look with `cnova get applications`"
    )]
    Silent {
        url: String,
        request: String,
        reason: String,
    },
    #[error(
        "no safe connection to the hub {url}: {reason}\n  name the authority that certifies it with --ca FILE, CNOVA_CA, or ca = \"FILE\" in ~/.config/cnova/config.toml"
    )]
    NotTrusted { url: String, reason: String },
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error("the hub {url} answered {request} with something that this program does not understand: {reason}\n  is it a cnova hub, and of this program's version ({})?", env!("CARGO_PKG_VERSION"))]
    NotUnderstood {
        url: String,
        request: String,
        reason: String,
    },
    #[error("the authorities given with --ca, CNOVA_CA or the configuration hold no certificate in PEM form")]
    NoAuthorities,
}

/// The hub said no.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) request: String,
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) details: Value,
    /// Whether a token was shown.
    pub(crate) with_token: bool,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Value,
}

impl Refusal {
    /// Reasons in the details, in any of the shapes that hold a list of texts.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let list = self.details.get("reasons").unwrap_or(&self.details);
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    }

    /// Message and reasons on one line, for where the request is plain.
    pub(crate) fn text(&self) -> String {
        let more = self
            .reasons()
            .into_iter()
            .filter(|r| !self.message.contains(r.as_str()));
        let parts: Vec<String> = std::iter::once(self.message.clone()).chain(more).collect();
        parts.join("; ")
    }

    /// Whether policy said no, and not the token's role.
    pub(crate) fn is_policy(&self) -> bool {
        self.code == "policy"
    }

    fn advice(&self) -> Option<&'static str> {
        Some(match (self.status, self.with_token) {
            (401, false) => {
                "give a token with --token-file FILE or CNOVA_TOKEN; an admin makes one with: cnova token new"
            }
            (401, true) => {
                "the hub does not know this token; was it removed from the hub's token file, or is this another hub?"
            }
            (403, _) if self.is_policy() => "the hub's policy forbids it; its administrator keeps the policy",
            (403, _) => "your token's role does not allow this; ask an admin for one with the role operator or admin",
            (413, _) => "make it smaller, or raise the hub's limit in its configuration",
            (503, _) => "the hub is busy, starting or stopping; try again in a moment",
            (504, _) => "see whether the node is connected with: cnova get nodes",
            (507, _) => "the hub has no room; free space on its disk, or raise its limits, and try again",
            (300..=399, _) => "the hub's address redirects; name the address that it redirects to with --hub",
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = if self.message.is_empty() {
            "without a reason"
        } else {
            &self.message
        };
        write!(f, "the hub refused {} ({}", self.request, self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        write!(f, "): {message}")?;
        // The message may hold the reasons already.
        for reason in self.reasons().iter().filter(|r| !message.contains(r.as_str())) {
            write!(f, "\n  - {reason}")?;
        }
        match self.advice() {
            Some(advice) => write!(f, "\n  {advice}"),
            None => Ok(()),
        }
    }
}

impl Hub {
    /// Prepares to speak to a hub; nothing is sent yet.
    pub(crate) fn new(settings: &Settings) -> Result<Self, HubError> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A token goes to the hub that was named and to no other.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .timeout_per_write(Some(SILENCE_TIMEOUT))
            .user_agent(concat!("cnova/", env!("CARGO_PKG_VERSION")));
        if is_local(&settings.hub) {
            config = config.proxy(None);
        }
        if let Some(pem) = &settings.ca {
            config = config.tls_config(TlsConfig::builder().root_certs(authorities(pem)?).build());
        }
        let agent = Agent::new_with_config(config.build());
        Ok(Self {
            agent,
            url: settings.hub.clone(),
            token: settings.token.clone(),
        })
    }

    /// Why the token should not be sent there, if it should not.
    pub(crate) fn warning(&self) -> Option<String> {
        let open = self.token.is_some() && self.url.starts_with("http://") && !is_local(&self.url);
        open.then(|| format!("your token goes to {} unencrypted; use its https address", self.url))
    }

    /// Asks for JSON.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, HubError> {
        let request = format!("GET {path}");
        let response = self.with_token(self.agent.get(self.at(path))).call();
        self.read_json(&request, self.accepted(&request, response)?)
    }

    /// Asks for a document in its signed form.
    pub(crate) fn get_signed(&self, path: &str) -> Result<Vec<u8>, HubError> {
        let request = format!("GET {path}");
        let response = self
            .with_token(self.agent.get(self.at(path)))
            .header("accept", "application/cose")
            .call();
        self.read(&request, self.accepted(&request, response)?)
    }

    /// Sends JSON, and reads the answer's.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, HubError> {
        let request = format!("POST {path}");
        let response = self.with_token(self.agent.post(self.at(path))).send_json(body);
        self.read_json(&request, self.accepted(&request, response)?)
    }

    /// Sends bytes, and reads the answer's JSON.
    pub(crate) fn post_bytes<T: DeserializeOwned>(&self, path: &str, media: &str, bytes: &[u8]) -> Result<T, HubError> {
        let request = format!("POST {path}");
        let post = self.with_token(self.agent.post(self.at(path)));
        let response = post.header("content-type", media).send(bytes);
        self.read_json(&request, self.accepted(&request, response)?)
    }

    /// Puts bytes in the place of others, and reads the answer's JSON.
    pub(crate) fn put_bytes<T: DeserializeOwned>(&self, path: &str, media: &str, bytes: &[u8]) -> Result<T, HubError> {
        let request = format!("PUT {path}");
        let put = self.with_token(self.agent.put(self.at(path)));
        let response = put.header("content-type", media).send(bytes);
        self.read_json(&request, self.accepted(&request, response)?)
    }

    /// Deletes.
    pub(crate) fn delete(&self, path: &str) -> Result<(), HubError> {
        let request = format!("DELETE {path}");
        let response = self.with_token(self.agent.delete(self.at(path))).call();
        self.accepted(&request, response).map(|_| ())
    }

    /// Whether the hub has an artifact.
    pub(crate) fn has_artifact(&self, digest: &Digest) -> Result<bool, HubError> {
        let path = routes::artifact(digest);
        let request = format!("HEAD {path}");
        match self.accepted(&request, self.with_token(self.agent.head(self.at(&path))).call()) {
            Ok(_) => Ok(true),
            Err(HubError::Refused(r)) if r.status == 404 => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Uploads an artifact; the hub checks that it has this digest.
    pub(crate) fn upload(&self, digest: &Digest, file: &File) -> Result<(), HubError> {
        let request = format!("POST {} of {}", routes::ARTIFACTS, digest.short());
        let response = self
            .with_token(self.agent.post(self.at(routes::ARTIFACTS)))
            .header("x-cnova-digest", digest.to_string())
            .header("content-type", "application/octet-stream")
            .send(file);
        self.accepted(&request, response).map(|_| ())
    }

    /// Uploads `size` bytes that are read somewhere; the hub checks that they have this digest.
    pub(crate) fn upload_from(&self, digest: &Digest, size: u64, mut bytes: impl Read) -> Result<(), HubError> {
        let request = format!("POST {} of {}", routes::ARTIFACTS, digest.short());
        let response = self
            .with_token(self.agent.post(self.at(routes::ARTIFACTS)))
            .header("x-cnova-digest", digest.to_string())
            .header("content-type", "application/octet-stream")
            .header("content-length", size.to_string())
            .send(ureq::SendBody::from_reader(&mut bytes));
        self.accepted(&request, response).map(|_| ())
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn accepted(
        &self,
        request: &str,
        response: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, HubError> {
        let response = response.map_err(|e| self.transport(request, &e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let (with_token, request) = (self.token.is_some(), request.to_owned());
        let body = self.read(&request, response)?;
        let fields = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.error,
            Err(_) => ErrorFields {
                code: String::new(),
                message: shown(&body),
                details: Value::Null,
            },
        };
        let ErrorFields { code, message, details } = fields;
        Err(HubError::Refused(Box::new(Refusal {
            request,
            status,
            code,
            message,
            details,
            with_token,
        })))
    }

    fn read(&self, request: &str, response: Response<Body>) -> Result<Vec<u8>, HubError> {
        let read = response
            .into_body()
            .into_with_config()
            .limit(ANSWER_BYTES)
            .read_to_vec();
        read.map_err(|e| self.transport(request, &e))
    }

    fn read_json<T: DeserializeOwned>(&self, request: &str, response: Response<Body>) -> Result<T, HubError> {
        let body = self.read(request, response)?;
        serde_json::from_slice(&body).map_err(|e| HubError::NotUnderstood {
            url: self.url.clone(),
            request: request.to_owned(),
            reason: format!("{e} in {:?}", shown(&body)),
        })
    }

    fn transport(&self, request: &str, e: &ureq::Error) -> HubError {
        use ureq::{Error, Timeout};
        let (url, request) = (self.url.clone(), request.to_owned());
        let reason = e.to_string().trim_start_matches("io: ").to_owned();
        match e {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => HubError::Unreachable { url, reason },
            Error::Timeout(_) => HubError::Silent { url, request, reason },
            Error::Rustls(_) | Error::Tls(_) => HubError::NotTrusted { url, reason },
            // The handshake runs inside reads and writes, which can only fail as those do.
            Error::Io(io) if io.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                HubError::NotTrusted { url, reason }
            }
            Error::Protocol(_) | Error::BodyExceedsLimit(_) | Error::LargeResponseHeader(..) => {
                HubError::NotUnderstood { url, request, reason }
            }
            _ => HubError::Unreachable { url, reason },
        }
    }
}

/// Whether a URL's host is this machine.
fn is_local(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn authorities(pem: &[u8]) -> Result<RootCerts, HubError> {
    let certificates: Vec<Certificate<'static>> = parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(c)) => Some(c),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(HubError::NoAuthorities);
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// The beginning of an answer that is not understood.
fn shown(body: &[u8]) -> String {
    let mut start = Vec::new();
    // Reading from memory cannot fail.
    let _ = body.take(4 * SHOWN_CHARS as u64).read_to_end(&mut start);
    let text = String::from_utf8_lossy(&start);
    text.trim()
        .chars()
        .take(SHOWN_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_hosts_are_known() {
        for local in [
            "http://127.0.0.1:8080",
            "http://localhost",
            "http://[::1]:80/x",
            "http://127.9.9.9",
        ] {
            assert!(is_local(local), "{local}");
        }
        for far in [
            "http://127.0.0.1.example",
            "https://hub.example",
            "http://10.0.0.1:8080",
            "http://localhost.x",
        ] {
            assert!(!is_local(far), "{far}");
        }
    }
}
