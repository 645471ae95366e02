//! Secrets: set, granted, removed, and encrypted to the nodes whose workloads use them.
//!
//! Encryption is randomised, so what was made once is used again for as long as secret and key are the same: a twin that
//! is composed anew has the same bytes. It is kept in the twins themselves, which the store holds.

use cnova_shared::keys::KeyId;
use cnova_shared::secret::BoxPublicKey;

use super::*;
use crate::cndl::{Manifest, nearest_name};
use crate::secrets::{Grantee, SealKey, SealOrder, Sealed, SecretChange, SecretInfo, StoredSecret};

/// What is wrong with a secret of a manifest: where it stands, what, and what would be right.
type Mistake = (String, String, Option<String>);

/// A use of a secret that stands against a change.
struct User {
    id: String,
    as_variable: bool,
}

impl Hub {
    pub(super) fn on_secret(&mut self, request: RequestId, change: SecretChange, now: Now) {
        match change {
            SecretChange::Set {
                name,
                locked,
                tag,
                is_text,
                allow,
                by,
            } => {
                let before = self.secrets.get(&name);
                if let Some(same) = before.filter(|s| s.tag == tag).cloned() {
                    let allow = allow.unwrap_or_else(|| same.allow.clone());
                    return self.put_secret(request, name, StoredSecret { allow, ..same }, now);
                }
                if before.is_none() && self.secrets.len() >= limits::SECRETS {
                    let why = format!("there are {} secrets already, which is the most", limits::SECRETS);
                    return self.refuse(request, vec![why]);
                }
                let last = before.map(|s| s.version).or(self.removed_secrets.get(&name).copied());
                let secret = StoredSecret {
                    version: last.unwrap_or(0) + 1,
                    locked,
                    tag,
                    is_text,
                    allow: allow.or(before.map(|s| s.allow.clone())).unwrap_or_default(),
                    by,
                    set_ms: now.wall_ms,
                };
                self.put_secret(request, name, secret, now);
            }
            SecretChange::Allow { name, allow } => match self.secrets.get(&name).cloned() {
                Some(before) => self.put_secret(request, name, StoredSecret { allow, ..before }, now),
                None => self.answer(request, no_secret(&name)),
            },
            SecretChange::Remove(name) => self.remove_secret(request, name, now),
        }
    }

    /// Takes a secret as it is to be, unless somebody uses it who could not any more.
    fn put_secret(&mut self, request: RequestId, name: Name, secret: StoredSecret, now: Now) {
        let mut reasons = Vec::new();
        for user in self.users_of(&name) {
            let (application, workload) = user.id.split_once('/').unwrap_or_default();
            if !secret.allow.iter().any(|g| g.covers(application, workload)) {
                reasons.push(format!(
                    "{} uses secret {name} and would not be granted it any more",
                    user.id
                ));
            }
            if user.as_variable && !secret.is_text {
                let why = "the new value is not text without NUL";
                reasons.push(format!("{} uses secret {name} as a variable, and {why}", user.id));
            }
        }
        if !reasons.is_empty() {
            return self.refuse(request, reasons);
        }
        let version = secret.version;
        self.seal_failed.retain(|(failed, _), _| *failed != name);
        let changed = self.secrets.get(&name) != Some(&secret);
        if changed {
            self.removed_secrets.remove(&name);
            self.ops.push(Op::PutSecret {
                name: name.clone(),
                secret: secret.clone(),
            });
            self.secrets.insert(name.clone(), secret);
        }
        self.answer(request, Outcome::Secret { name, version, changed });
        self.reconcile(now);
    }

    fn remove_secret(&mut self, request: RequestId, name: Name, now: Now) {
        let Some(secret) = self.secrets.get(&name) else {
            return self.answer(request, no_secret(&name));
        };
        let users = self.users_of(&name);
        if !users.is_empty() {
            let list: BTreeSet<String> = users.into_iter().map(|u| u.id).collect();
            let list = list.into_iter().collect::<Vec<_>>().join(", ");
            return self.refuse(request, vec![format!("secret {name} is used by {list}")]);
        }
        let version = secret.version;
        self.secrets.remove(&name);
        self.removed_secrets.insert(name.clone(), version);
        self.ops.push(Op::DropSecret { name, version });
        self.answer(request, Outcome::Done);
        self.reconcile(now);
    }

    /// Workloads of applications in force, and of those that wait, that use a secret.
    fn users_of(&self, name: &Name) -> Vec<User> {
        let manifests = self.apps.values().map(|a| a.placement.manifest().manifest());
        let manifests = manifests.chain(self.candidates.iter().map(|c| c.manifest.manifest()));
        manifests
            .flat_map(|m| m.secrets().map(move |(_, def, secret)| (m.application(), def, secret)))
            .filter(|(.., secret)| secret.name == name.as_str())
            .map(|(application, def, secret)| User {
                id: format!("{}/{}", application.name, def.name),
                as_variable: matches!(secret.target, v1::SecretTarget::Env(_)),
            })
            .collect()
    }

    /// What is wrong with the secrets of a manifest: unknown, not granted, of no use as what they are used for.
    #[must_use]
    pub fn secret_mistakes(&self, manifest: &Manifest) -> Vec<Mistake> {
        let application = &manifest.application().name;
        let mistake = |(pointer, def, given): (String, &crate::cndl::WorkloadDef, &crate::cndl::SecretDef)| {
            let name = &given.name;
            let known = Name::new(name).ok().and_then(|n| self.secrets.get(&n));
            let Some(secret) = known else {
                let near = nearest_name(name, self.secrets.keys().map(Name::as_str));
                let set = format!(
                    "set it with: cnova secret set {name} --allow {application}/{}",
                    def.name
                );
                return Some((pointer, format!("there is no secret \"{name}\""), near.or(Some(set))));
            };
            if !secret.allow.iter().any(|g| g.covers(application, &def.name)) {
                let message = format!("secret \"{name}\" is not granted to {application}/{}", def.name);
                let who: Vec<String> = secret.allow.iter().map(Grantee::to_string).collect();
                let who = [who, vec![format!("{application}/{}", def.name)]].concat().join(" ");
                return Some((
                    pointer,
                    message,
                    Some(format!("an admin grants it with: cnova secret allow {name} {who}")),
                ));
            }
            let as_variable = matches!(given.target, v1::SecretTarget::Env(_));
            if as_variable && !secret.is_text {
                let message = format!("secret \"{name}\" is not text without NUL, so that it cannot be a variable");
                return Some((
                    pointer,
                    message,
                    Some("give it as a file: path: /run/secrets/NAME".to_owned()),
                ));
            }
            None
        };
        manifest.secrets().filter_map(mistake).collect()
    }

    /// All secrets, for people.
    #[must_use]
    pub fn secrets(&self) -> Vec<SecretInfo> {
        let nodes = |name: &Name| {
            let carries = |(node, twin): (&NodeId, &Made)| {
                let newest = twin.secrets.iter().filter(|s| s.name == *name).map(|s| s.version).max();
                Some((node.clone(), newest?))
            };
            self.composed.iter().filter_map(carries).collect()
        };
        let info = |(name, secret): (&Name, &StoredSecret)| SecretInfo {
            name: name.clone(),
            version: secret.version,
            allow: secret.allow.clone(),
            used_by: self.users_of(name).into_iter().map(|u| u.id).collect(),
            nodes: nodes(name),
            by: secret.by.clone(),
            set_ms: secret.set_ms,
        };
        self.secrets.iter().map(info).collect()
    }

    /// The key that a node's secrets are encrypted to, by its newest hello.
    fn box_key(&self, node: &NodeId) -> Option<BoxPublicKey> {
        let hello = self.inventory.nodes().get(node)?.hello.as_ref()?;
        BoxPublicKey::from_bytes(hello.box_key.as_ref()?).ok()
    }

    /// A secret as the node can open it, from what was made before. A node that shows no key now keeps what it has.
    fn sealed(&self, node: &NodeId, given: &v1::SecretUse, key: Option<KeyId>) -> Option<&v1::SealedSecret> {
        let of_twin = self.composed.get(node).into_iter().flat_map(|made| &made.secrets);
        let fits = |s: &&v1::SealedSecret| {
            s.name == given.name && s.version == given.version && key.is_none_or(|key| s.key == key)
        };
        self.sealed.get(node).into_iter().flatten().chain(of_twin).find(fits)
    }

    /// Workloads whose secrets cannot be given become problems; what is still to be encrypted is ordered. False while
    /// the node's twin has to wait for that.
    pub(super) fn order_secrets(&mut self, node: &NodeId, composed: &mut Composed) -> bool {
        if composed.workloads.iter().all(|w| w.secrets.is_empty()) {
            return true;
        }
        let key = self.box_key(node);
        let id = key.as_ref().map(BoxPublicKey::id);
        let mut orders = BTreeMap::new();
        let mut room = Room::default();
        let mut kept = Vec::with_capacity(composed.workloads.len());
        for workload in std::mem::take(&mut composed.workloads) {
            let verdict = self.order_for(node, &workload, key.as_ref().zip(id), &mut room, &mut orders);
            match verdict {
                Ok(()) => kept.push(workload),
                Err(why) => drop(composed.problems.insert(workload.id, why)),
            }
        }
        composed.workloads = kept;
        for (key, order) in orders {
            if self.sealing.insert(key) {
                self.effects.push_back(Action::SealSecret(Box::new(order)));
            }
        }
        !self.sealing.iter().any(|k| k.node == *node)
    }

    fn order_for(
        &self,
        node: &NodeId,
        workload: &v1::Workload,
        key: Option<(&BoxPublicKey, KeyId)>,
        room: &mut Room,
        orders: &mut BTreeMap<SealKey, SealOrder>,
    ) -> Result<(), String> {
        for given in &workload.secrets {
            let name = &given.name;
            if let Some(sealed) = self.sealed(node, given, key.map(|(_, id)| id)) {
                room.take(given, sealed.blob.len())?;
                continue;
            }
            if let Some(why) = self.seal_failed.get(&(name.clone(), given.version)) {
                return Err(format!("secret {name} cannot be encrypted: {why}"));
            }
            let Some((key, _)) = key else {
                return Err(format!(
                    "secret {name} cannot be encrypted to {node}: the node shows no key for secrets (its alarms say why, \
                     or its agent is too old)"
                ));
            };
            let secret = self.secrets.get(name).filter(|s| s.version == given.version);
            let secret = secret.ok_or_else(|| format!("there is no secret {name}"))?;
            room.take(given, secret.locked.len() + limits::SEALED_SECRET_EXTRA)?;
            let seal = SealKey {
                node: node.clone(),
                name: name.clone(),
                version: given.version,
            };
            let order = SealOrder {
                key: seal.clone(),
                box_key: key.to_bytes(),
                locked: secret.locked.clone(),
            };
            orders.insert(seal, order);
        }
        Ok(())
    }

    /// The secrets of a twin with these workloads, in order. What the workloads of a last good twin use is in that twin.
    pub(super) fn secrets_for(&self, node: &NodeId, workloads: &[v1::Workload]) -> Vec<v1::SealedSecret> {
        let key = self.box_key(node).map(|k| k.id());
        let uses: BTreeMap<(&Name, u64), &v1::SecretUse> = workloads
            .iter()
            .flat_map(|w| &w.secrets)
            .map(|given| ((&given.name, given.version), given))
            .collect();
        let sealed = |given| self.sealed(node, given, key).or_else(|| self.sealed(node, given, None));
        uses.into_values().filter_map(sealed).cloned().collect()
    }

    pub(super) fn on_sealed(&mut self, key: SealKey, result: Sealed, now: Now) {
        self.sealing.remove(&key);
        match result {
            Ok(secret) => {
                let of_node = self.sealed.entry(key.node).or_default();
                of_node.retain(|s| s.name != secret.name);
                of_node.push(secret);
            }
            Err(why) => {
                let why = limits::clip(&why);
                self.note(format!("secret {} was not encrypted for {}: {why}", key.name, key.node));
                self.seal_failed.insert((key.name, key.version), why);
            }
        }
        // All that were ordered together are answered one after the other.
        if self.sealing.is_empty() {
            self.reconcile(now);
        }
    }

    /// What is in a node's twin by now need not be kept beside it.
    pub(super) fn forget_sealed(&mut self, node: &NodeId) {
        self.sealed.remove(node);
    }
}

/// Room for secrets in one twin.
#[derive(Default)]
struct Room {
    taken: BTreeMap<(Name, u64), usize>,
}

impl Room {
    fn take(&mut self, given: &v1::SecretUse, bytes: usize) -> Result<(), String> {
        self.taken.insert((given.name.clone(), given.version), bytes);
        let (count, total) = (self.taken.len(), self.taken.values().sum::<usize>());
        if count > limits::SECRETS_PER_TWIN || total > limits::SECRETS_BYTES_PER_TWIN {
            self.taken.remove(&(given.name.clone(), given.version));
            return Err(format!(
                "secret {} does not fit: the secrets of one node take at most {} KiB, and are at most {}",
                given.name,
                limits::SECRETS_BYTES_PER_TWIN / 1024,
                limits::SECRETS_PER_TWIN
            ));
        }
        Ok(())
    }
}

fn no_secret(name: &Name) -> Outcome {
    Outcome::NotFound {
        what: format!("secret {name}"),
    }
}
