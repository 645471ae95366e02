//! What children say: hellos, streams, carried messages.

use super::*;
use crate::trust::revoked_text;

impl Tree {
    pub(super) fn on_hello(
        &mut self,
        child: &NodeId,
        author: &NodeId,
        bytes: &[u8],
        clock: &Clock<'_>,
    ) -> Result<(), String> {
        let untrusted = Untrusted::read(bytes).map_err(|e| e.to_string())?;
        let certificate = certificate::verify(&untrusted.x5chain, &clock.trust.bundle().authorities(), clock.now_s)
            .map_err(|e| e.to_string())?;
        if untrusted.claims.iss != certificate.node || certificate.node != *author {
            return Err(format!(
                "{} signed it with the certificate of {}",
                untrusted.claims.iss, certificate.node
            ));
        }
        if let Some(revoked) = clock.trust.revoked(author, Some(certificate.key.id())) {
            return Err(revoked_text(revoked));
        }
        let key = untrusted.speaker(&certificate).map_err(|e| e.to_string())?;
        let verified = untrusted.verify(Kind::Hello, &key).map_err(|e| e.to_string())?;
        let hello = verified.decode::<v1::Hello>().map_err(|e| e.to_string())?.into_value();
        self.check_hello(author, &hello, certificate.site.as_ref())?;
        let has = (
            Version {
                epoch: hello.epoch,
                generation: hello.generation,
            },
            hello.digest,
        );
        let known = Descendant {
            via: child.clone(),
            certificate,
            key,
            hello: bytes.to_vec(),
            has: Some(has),
            renew: hello.renew,
            site: hello.site.clone(),
            role: hello.role,
            trust_version: hello.trust_version,
            documents: hello.documents.clone(),
        };
        self.descendants.insert(author.clone(), known);
        // Another device may have taken the name of one that was revoked.
        self.revoked.remove(author);
        let put = TreeOp::PutDescendant {
            node: author.clone(),
            via: child.clone(),
            hello: bytes.to_vec(),
        };
        self.events.push_back(TreeEvent::Persist(put));
        self.persist_reported(author, has);
        if child == author {
            self.welcome(child, &hello);
            self.look_behind(child, clock.trust);
        }
        // Whatever was on its way when the link broke is sent again at once.
        if let Some(twin) = self.twins.get_mut(author) {
            twin.backoff.reset();
            twin.resend_at = 0;
        }
        let (raw, author) = (bytes.to_vec(), author.clone());
        self.events.push_back(TreeEvent::Heard {
            author,
            said: Said::Hello(hello),
            kind: Kind::Hello,
            raw,
        });
        Ok(())
    }

    pub(super) fn persist_reported(&mut self, node: &NodeId, (version, digest): (Version, Option<Digest>)) {
        let Version { epoch, generation } = version;
        let op = TreeOp::Reported {
            node: node.clone(),
            epoch,
            generation,
            digest,
        };
        self.events.push_back(TreeEvent::Persist(op));
    }

    pub(super) fn check_hello(
        &self,
        author: &NodeId,
        hello: &v1::Hello,
        site: Option<&SitePath>,
    ) -> Result<(), String> {
        if hello.v != v1::VERSION {
            return Err(format!("it is of version {}, this node reads {}", hello.v, v1::VERSION));
        }
        if let Some(site) = site.filter(|s| **s != hello.site) {
            return Err(format!(
                "it says its site is {}, its certificate says {site}",
                hello.site
            ));
        }
        if hello.documents.len() > limits::DOCUMENTS_SAID {
            return Err(format!(
                "it names {} documents, at most {}",
                hello.documents.len(),
                limits::DOCUMENTS_SAID
            ));
        }
        if !self.descendants.contains_key(author) && self.descendants.len() >= limits::DESCENDANTS {
            return Err(format!("{} descendants are the most", limits::DESCENDANTS));
        }
        Ok(())
    }

    pub(super) fn welcome(&mut self, child: &NodeId, hello: &v1::Hello) {
        let streams: &[Stream] = match hello.role {
            v1::NodeRole::Agent => &[Stream::Report],
            v1::NodeRole::Gateway => &[Stream::Report, Stream::Relay],
        };
        for &stream in streams {
            self.ack(child, stream, Some(hello.boot.clone()));
        }
    }

    pub(super) fn open<T: serde::de::DeserializeOwned + v1::Versioned>(
        &self,
        author: &NodeId,
        kind: Kind,
        bytes: &[u8],
    ) -> Result<T, String> {
        let verified = self.verify(author, kind, bytes)?;
        Ok(verified.decode::<T>().map_err(|e| e.to_string())?.into_value())
    }

    fn verify(&self, author: &NodeId, kind: Kind, bytes: &[u8]) -> Result<VerifiedBytes, String> {
        let untrusted = Untrusted::read(bytes).map_err(|e| e.to_string())?;
        if untrusted.claims.iss != *author {
            return Err(format!("{} is named as its author", untrusted.claims.iss));
        }
        let known = self
            .descendants
            .get(author)
            .ok_or("it has not said hello since this node began anew")?;
        if self.revoked.contains(author) {
            return Err(format!("{author} is revoked"));
        }
        let for_me = [self.me.as_str(), HUB_AUDIENCE];
        if !for_me.contains(&untrusted.claims.aud.as_str()) {
            return Err(format!("it is for {}", untrusted.claims.aud));
        }
        untrusted.verify(kind, &known.key).map_err(|e| e.to_string())
    }

    /// Takes one message of a stream if it is the next; says whether it was.
    pub(super) fn advance(&mut self, child: &NodeId, stream: Stream, incarnation: u64, from: u64, to: u64) -> bool {
        let key = (child.clone(), stream);
        let held = self.received.get(&key).copied().unwrap_or_default();
        match admit(held, incarnation, from, to) {
            Admit::Fresh(position) => {
                self.received.insert(key, position);
                if self.gather.get(child).is_none_or(|g| g.due.is_none()) {
                    let op = TreeOp::Received {
                        child: child.clone(),
                        stream,
                        position,
                    };
                    self.events.push_back(TreeEvent::Persist(op));
                }
                true
            }
            Admit::Duplicate | Admit::Gap => false,
        }
    }

    pub(super) fn on_report_stream(&mut self, child: &NodeId, bytes: &[u8]) -> Result<(), String> {
        let report = self.open::<v1::Report>(child, Kind::Report, bytes)?;
        if self.advance(child, Stream::Report, report.incarnation, report.from, report.to) {
            self.on_report(child, report, bytes);
        }
        self.ack(child, Stream::Report, None);
        Ok(())
    }

    pub(super) fn on_report(&mut self, author: &NodeId, report: v1::Report, bytes: &[u8]) {
        for entry in &report.entries {
            if let (
                Body::Twin {
                    epoch,
                    generation,
                    digest,
                    ..
                },
                Some(d),
            ) = (&entry.body, self.descendants.get_mut(author))
            {
                let has = (
                    Version {
                        epoch: *epoch,
                        generation: *generation,
                    },
                    Some(*digest),
                );
                if d.has.replace(has) != Some(has) {
                    self.persist_reported(author, has);
                }
            }
        }
        let (raw, author) = (bytes.to_vec(), author.clone());
        self.events.push_back(TreeEvent::Heard {
            author,
            said: Said::Report(report),
            kind: Kind::Report,
            raw,
        });
    }

    pub(super) fn on_relay(&mut self, child: &NodeId, bytes: &[u8], clock: &Clock<'_>) -> Result<(), String> {
        let relay = self.open::<v1::Relay>(child, Kind::Relay, bytes)?;
        if relay.items.len() > limits::RELAY_ITEMS {
            return Err(format!(
                "{} messages in it, at most {}",
                relay.items.len(),
                limits::RELAY_ITEMS
            ));
        }
        if self.advance(child, Stream::Relay, relay.incarnation, relay.from, relay.to) {
            for item in &relay.items {
                if let Err(why) = self.on_carried(child, &item.kind, &item.body, clock) {
                    self.note(format!("a {} that {child} carried was not taken: {why}", item.kind));
                    self.gather_later(child, clock.mono_ms);
                }
            }
        }
        self.ack(child, Stream::Relay, None);
        Ok(())
    }

    pub(super) fn on_carried(
        &mut self,
        child: &NodeId,
        kind: &str,
        bytes: &[u8],
        clock: &Clock<'_>,
    ) -> Result<(), String> {
        let (claims, _) = crate::envelope::peek(bytes).map_err(|e| e.to_string())?;
        let author = claims.iss;
        if author == self.me || self.connected.contains(&author) && author != *child {
            return Err(format!("{author} is connected here itself"));
        }
        match Kind::parse(kind) {
            Some(Kind::Hello) => self.on_hello(child, &author, bytes, clock),
            Some(Kind::Report) => {
                let report = self.open::<v1::Report>(&author, Kind::Report, bytes)?;
                self.on_report(&author, report, bytes);
                Ok(())
            }
            Some(Kind::Reply) => self.on_reply(&author, bytes),
            Some(Kind::Evidence) => self.on_evidence(&author, bytes),
            _ => Err("its kind is not carried".into()),
        }
    }

    pub(super) fn on_reply(&mut self, author: &NodeId, bytes: &[u8]) -> Result<(), String> {
        let reply = self.open::<v1::Reply>(author, Kind::Reply, bytes)?;
        let (author, raw) = (author.clone(), bytes.to_vec());
        self.events.push_back(TreeEvent::Heard {
            author,
            said: Said::Reply(reply),
            kind: Kind::Reply,
            raw,
        });
        Ok(())
    }

    /// What is in it is for whoever appraises; here only the signature is of interest.
    pub(super) fn on_evidence(&mut self, author: &NodeId, bytes: &[u8]) -> Result<(), String> {
        let verified = self.verify(author, Kind::Evidence, bytes)?;
        self.events.push_back(TreeEvent::Heard {
            author: author.clone(),
            said: Said::Evidence(verified),
            kind: Kind::Evidence,
            raw: bytes.to_vec(),
        });
        Ok(())
    }

    pub(super) fn on_chunk_request(&mut self, child: &NodeId, bytes: &[u8]) -> Result<(), String> {
        let request = self.open::<v1::ChunkRequest>(child, Kind::ChunkRequest, bytes)?;
        if request.length == 0 || request.length > limits::CHUNK_BYTES {
            return Err(format!(
                "{} bytes asked for, 1 to {} can be had",
                request.length,
                limits::CHUNK_BYTES
            ));
        }
        self.events.push_back(TreeEvent::ChunkWanted {
            child: child.clone(),
            request,
        });
        Ok(())
    }

    /// Steps of an enrolment are carried as they are, without a spool: whoever waits for the answer asks again.
    pub(super) fn on_enrol(&mut self, child: &NodeId, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > limits::ENROL_BYTES {
            return Err(format!("{} bytes, at most {}", bytes.len(), limits::ENROL_BYTES));
        }
        let (claims, _) = crate::envelope::peek(bytes).map_err(|e| e.to_string())?;
        let author = claims.iss;
        if self.via(&author).is_some_and(|via| via != child) {
            return Err(format!("{author} does not hang behind it"));
        }
        let enrol = self.open::<v1::Enrol>(&author, Kind::Enrol, bytes)?;
        let raw = bytes.to_vec();
        self.events.push_back(TreeEvent::Enrol { author, enrol, raw });
        Ok(())
    }
}
