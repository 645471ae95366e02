//! What the parent says, and what is said to it.

use cnova_attestation::parent::stands_alone;

use super::*;

impl Agent {
    pub(super) fn on_message(&mut self, kind: Kind, bytes: &[u8], now: Now) {
        if kind != Kind::Trust
            && let Some(why) = self.parent.revoked(&self.trust)
        {
            return self.stage(Stage::Note(format!("a {} was not taken: {why}", kind.as_str())));
        }
        if !stands_alone(kind)
            && let Some(why) = self.doubt_about_parent(now)
        {
            let text = format!("a {} of the parent was not taken: {why}", kind.as_str());
            return self.stage(Stage::Note(text));
        }
        match kind {
            Kind::Twin => self.on_twin(bytes, now),
            Kind::Ack => self.on_ack(bytes, now),
            Kind::Chunk => self.on_chunk(bytes, now),
            Kind::Command => self.on_command(bytes, now),
            Kind::Challenge => self.on_challenge(bytes, now),
            Kind::Ear => self.on_ear(bytes, now),
            Kind::Enrolled => self.on_enrolled(bytes, now),
            Kind::Trust => self.on_trust(bytes, now),
            other => self.stage(Stage::Note(format!(
                "a {} came, which this version does not know",
                other.as_str()
            ))),
        }
    }

    pub(super) fn on_twin(&mut self, bytes: &[u8], now: Now) {
        let held = self.twin.as_ref().map(|t| Held {
            version: t.version(),
            digest: t.digest(),
            is_void: self.is_void(t),
        });
        let (now_s, floor) = (self.now_s(now), self.floor);
        let verdict = intake::judge(bytes, &self.config.node, self.trust.bundle(), held, floor, now_s);
        match self.quarantined(verdict) {
            Verdict::Held => {
                // Whoever repeats it does not know that it is here.
                self.parent.greet_again(now.mono_ms);
                self.stage(Stage::Note("the twin in force came again".into()));
            }
            Verdict::Renew(twin) => {
                self.raise_floor(twin.iat());
                self.ops.push(Op::PutTwin(twin.bytes().to_vec()));
                self.stage(Stage::Note("the twin in force came signed anew".into()));
                self.twin = Some(*twin);
                self.parent.changed(now.mono_ms);
            }
            Verdict::Refuse(r) => {
                let (epoch, generation) = (r.version.epoch, r.version.generation);
                let body = Body::Refused {
                    code: r.code.into(),
                    detail: limits::clip(&r.detail),
                    epoch,
                    generation,
                };
                self.reporter.refuse(now.wall_ms, body, &mut self.stream_ops);
                self.stage(Stage::Refused(format!("{}: {}", r.code, r.detail)));
            }
            Verdict::Take(twin) => {
                self.raise_floor(twin.iat());
                self.ops.push(Op::PutTwin(twin.bytes().to_vec()));
                self.count();
                let Version { epoch, generation } = twin.version();
                let (digest, verified_ms) = (twin.digest(), now.wall_ms);
                let body = Body::Twin {
                    epoch,
                    generation,
                    digest,
                    verified_ms,
                    committed_ms: 0,
                };
                self.say("twin", now, body);
                self.stage(Stage::Accepted(twin.version()));
                // The parent was told that what is held must be renewed: now it is.
                if self.twin.as_ref().is_some_and(|t| self.is_void(t)) {
                    self.parent.changed(now.mono_ms);
                }
                self.twin = Some(*twin);
                self.desire(now);
            }
        }
    }

    pub(super) fn on_ack(&mut self, bytes: &[u8], now: Now) {
        let Some(ack) = self.open_from_parent::<v1::Ack>(Kind::Ack, bytes, now) else {
            return;
        };
        if ack.stream != v1::Stream::Report {
            return;
        }
        let position = Position {
            incarnation: ack.incarnation,
            seq: ack.seq,
        };
        let welcome = ack.hello.as_ref() == Some(&self.config.boot);
        self.reporter
            .on_ack(position, welcome, now.mono_ms, &mut self.stream_ops);
        if welcome && self.parent.welcomed() {
            self.reporter.set_connected(true);
            self.stage(Stage::Welcomed);
        }
    }

    pub(super) fn on_chunk(&mut self, bytes: &[u8], now: Now) {
        let Some(c) = self.open_from_parent::<v1::Chunk>(Kind::Chunk, bytes, now) else {
            return;
        };
        match self
            .fetches
            .on_chunk(&c.digest, c.offset, c.total, c.data.len(), c.missing.as_deref())
        {
            ChunkEffect::Ignore => {}
            ChunkEffect::Missing(why) => {
                self.stage(Stage::Note(format!(
                    "artifact {} cannot be had yet: {why}",
                    c.digest.short()
                )));
            }
            ChunkEffect::Append { offset, complete } => {
                let digest = c.digest;
                if self.systems.fetched() == Some(digest) {
                    return self.on_system_chunk(offset, c.data, complete);
                }
                self.effects.push_back(Action::AppendChunk {
                    digest,
                    offset,
                    data: c.data,
                    complete,
                });
            }
        }
    }

    pub(super) fn on_command(&mut self, bytes: &[u8], now: Now) {
        let opened = Parent::open_hub(
            Kind::Command,
            bytes,
            &self.config.node,
            self.trust.bundle(),
            self.now_s(now),
        );
        let command = match opened.and_then(|v| Ok(v.decode::<v1::Command>()?)) {
            Ok(command) => command,
            Err(e) => return self.stage(Stage::Note(format!("a command was not taken: {e}"))),
        };
        self.raise_floor(command.claims().iat);
        let command = command.into_value();
        if !self.commands.is_new(command.id) {
            return;
        }
        let about = match &command.op {
            v1::Operation::Logs { workload, .. } | v1::Operation::Metrics { workload } => Some(workload),
            v1::Operation::Release {
                boot,
                epoch,
                generation,
            } => {
                let floor = Version {
                    epoch: *epoch,
                    generation: *generation,
                };
                return self.on_release(command.id, boot, floor, now);
            }
            v1::Operation::Unknown => None,
        };
        let attempt = about.and_then(|id| self.machines.get(id)).map(|m| m.row().attempt);
        self.effects.push_back(Action::Answer {
            id: command.id,
            op: command.op,
            attempt,
        });
    }

    /// The hub's answer to a request for the next certificate.
    pub(super) fn on_enrolled(&mut self, bytes: &[u8], now: Now) {
        let (me, now_s) = (self.config.node.clone(), self.now_s(now));
        let opened = Parent::open_hub(Kind::Enrolled, bytes, &me, self.trust.bundle(), now_s);
        let enrolled = match opened.and_then(|v| Ok(v.decode::<v1::Enrolled>()?)) {
            Ok(enrolled) => enrolled,
            Err(e) => {
                return self.stage(Stage::Note(format!(
                    "an answer about the certificate was not taken: {e}"
                )));
            }
        };
        self.raise_floor(enrolled.claims().iat);
        let enrolled = enrolled.into_value();
        if !self.renewal.is_mine(&enrolled) {
            return self.stage(Stage::Note("an answer about the certificate came too late".into()));
        }
        let problem = match enrolled.answer {
            v1::EnrolAnswer::Issued(issued) => {
                let (site, now_s) = (&self.config.site, self.now_s(now));
                match self.renewal.take(&issued, &me, site, self.trust.bundle(), now_s) {
                    Ok(()) => return self.effects.push_back(Action::Install(Box::new(issued))),
                    Err(e) => e.to_string(),
                }
            }
            v1::EnrolAnswer::Refused(no) => no.to_string(),
            other => format!("{other:?} is no answer to it"),
        };
        self.stage(Stage::Note(format!("the certificate was not renewed: {problem}")));
    }

    pub(super) fn open_from_parent<T: serde::de::DeserializeOwned + v1::Versioned>(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        now: Now,
    ) -> Option<T> {
        let now_s = self.now_s(now);
        let opened = self.parent.open(kind, bytes, &self.config.node, &self.trust, now_s);
        let decoded = opened.and_then(|v| v.decode::<T>().map_err(ParentError::from));
        match decoded {
            // A gateway's clock may be decades off: only what the hub signed moves the time floor.
            Ok(v) => Some(v.into_value()),
            Err(e) => {
                self.stage(Stage::Note(format!("a {} was not taken: {e}", kind.as_str())));
                None
            }
        }
    }

    /// The time floor follows what was verified, on disk at most once an hour: it only has to keep the century.
    pub(super) fn raise_floor(&mut self, iat: u64) {
        const WRITE_EVERY_S: u64 = 3600;
        if iat > self.floor_s {
            if iat - self.floor_s >= WRITE_EVERY_S {
                self.ops.push(Op::TimeFloor(iat));
            }
            self.floor_s = iat;
        }
    }

    /// Puts what is due for the parent behind everything else.
    pub(super) fn speak(&mut self, now: Now) {
        if !self.parent.is_connected() {
            return;
        }
        if self.parent.poll_hello(now.mono_ms) {
            let hello = self.hello();
            self.effects.push_back(Action::Send(Message::Hello(hello)));
        }
        while let Some(want) = self.fetches.poll(now.mono_ms) {
            let request = v1::ChunkRequest {
                v: v1::VERSION,
                digest: want.digest,
                offset: want.offset,
                length: want.length,
                base: None,
            };
            self.effects.push_back(Action::Send(Message::ChunkRequest(request)));
        }
        if let Some(enrol) = self.renewal.poll(self.now_s(now), now.mono_ms) {
            self.effects.push_back(Action::Send(Message::Enrol(enrol)));
        }
        self.reporter.on_timeout(now.mono_ms);
        while let Some(report) = self.reporter.poll(now.mono_ms) {
            self.effects.push_back(Action::Send(Message::Report(report)));
        }
    }

    pub(super) fn hello(&self) -> v1::Hello {
        let Version { epoch, generation } = self.version();
        v1::Hello {
            v: v1::VERSION,
            boot: self.config.boot.clone(),
            epoch,
            generation,
            digest: self.twin.as_ref().map(VerifiedTwin::digest),
            incarnation: self.reporter.incarnation(),
            role: v1::NodeRole::Agent,
            site: self.config.site.clone(),
            labels: self.config.labels.clone(),
            capabilities: self.config.capabilities.clone(),
            software: self.config.software.clone(),
            trust_version: self.trust.version(),
            documents: self.trust.documents(),
            renew: self.twin.as_ref().is_some_and(|t| self.is_void(t)),
            box_key: self.config.box_key.as_ref().ok().map(|key| key.to_bytes().into()),
            alarms: self.config.alarms.clone(),
        }
    }
}
