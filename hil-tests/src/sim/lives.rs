//! Links and processes: how they come, break and come again.

use cnova_shared::ids::NodeId;
use cnova_shared::wire::v1::Alarm;

use super::net::Arrival;
use super::pki::HUB;
use super::world::{Link, World, parent_of};

impl World {
    /// A link comes up when both its ends live; otherwise it is tried again.
    pub(super) fn connect(&mut self, child: &NodeId) {
        let parent = parent_of(child);
        if self.links[child].up {
            return;
        }
        let is_cut = self.hub_is_cut && parent.as_str() == HUB || self.cut_off.contains(child);
        if is_cut || !self.is_alive(child) || !self.is_alive(&parent) || self.is_refused(child) {
            let again = self.now + self.rng.u64(200..2_000);
            return self.net.at(again, Arrival::Heal { child: child.clone() });
        }
        let link = self.links.get_mut(child).expect("every child has a link");
        *link = Link {
            up: true,
            life: link.life + 1,
        };
        self.log(format!("link of {child} is up"));
        self.told_below(&parent, child, true);
        if self.agents.contains_key(child) {
            self.agent_event(child, cnova_agent_core::Event::Connected);
        } else {
            self.gateway_event(child, cnova_gateway_core::Event::ParentConnected);
        }
    }

    pub(super) fn told_below(&mut self, parent: &NodeId, child: &NodeId, up: bool) {
        let (child, reason) = (child.clone(), "the link broke".to_owned());
        if parent.as_str() == HUB {
            use cnova_hub_core::Event;
            self.hub_event(if up {
                Event::ChildConnected(child)
            } else {
                Event::ChildDisconnected { child, reason }
            });
        } else {
            use cnova_gateway_core::Event;
            let event = if up {
                Event::ChildConnected(child)
            } else {
                Event::ChildDisconnected { child, reason }
            };
            self.gateway_event(parent, event);
        }
    }

    /// A link breaks; it comes back after a while.
    pub(super) fn disconnect(&mut self, child: &NodeId, for_ms: u64) {
        let link = self.links.get_mut(child).expect("every child has a link");
        let was_up = std::mem::replace(&mut link.up, false);
        self.net.at(self.now + for_ms, Arrival::Heal { child: child.clone() });
        if !was_up {
            return;
        }
        self.log(format!("link of {child} breaks for {for_ms} ms"));
        let parent = parent_of(child);
        self.told_below(&parent, child, false);
        if self.agents.contains_key(child) {
            self.agent_event(child, cnova_agent_core::Event::Disconnected);
        } else {
            self.gateway_event(child, cnova_gateway_core::Event::ParentDisconnected);
        }
    }

    pub(super) fn is_alive(&self, node: &NodeId) -> bool {
        match (self.agents.get(node), self.gateways.get(node)) {
            (Some(a), _) => a.core.is_some(),
            (_, Some(g)) => g.core.is_some(),
            _ => self.hub.core.is_some(),
        }
    }

    /// A process dies; its links break, and it is started again after a while.
    pub(super) fn crash(&mut self, node: &NodeId) {
        if !self.is_alive(node) {
            return;
        }
        self.crashes += 1;
        self.log(format!("{node} dies"));
        if let Some(a) = self.agents.get_mut(node) {
            a.core = None;
        } else if let Some(g) = self.gateways.get_mut(node) {
            g.core = None;
        } else {
            self.hub.core = None;
        }
        let children: Vec<NodeId> = self
            .links
            .keys()
            .filter(|c| *c == node || parent_of(c) == *node)
            .cloned()
            .collect();
        for child in children {
            let for_ms = self.rng.u64(100..1_500);
            self.disconnect(&child, for_ms);
        }
        let again = self.now + self.rng.u64(100..5_000);
        self.net.at(again, Arrival::Restart(node.clone()));
    }

    pub(super) fn restart(&mut self, node: &NodeId) {
        if self.is_alive(node) || self.dark.contains(node) {
            return;
        }
        let now = self.clock(node);
        self.log(format!("{node} starts"));
        if self.full_disks.contains(node) {
            return self.announce_outage(node);
        }
        if self.in_outage.remove(node) {
            self.disconnect(node, 100);
        }
        if let Some(a) = self.agents.get_mut(node) {
            a.boot(now, Vec::new());
            self.ask_health(node);
            self.perform_agent(node);
        } else if let Some(g) = self.gateways.get_mut(node) {
            g.boot(now, Vec::new());
            self.perform_gateway(node);
        } else {
            self.hub.boot(now);
            self.perform_hub();
        }
        if self.links.contains_key(node) {
            self.connect(node);
        }
    }
}

impl World {
    /// An agent that cannot write, as its daemon is then: nothing that follows from what could not be written is done, the
    /// parent is told by a hello of a core that is thrown away, and after a while it looks again.
    pub(super) fn announce_outage(&mut self, node: &NodeId) {
        let now = self.clock(node);
        self.log(format!("{node} cannot write"));
        let Some(a) = self.agents.get_mut(node) else { return };
        a.boot(now, vec![disk_is_full()]);
        let mut core = a.core.take();
        self.in_outage.insert(node.clone());
        if let Some(core) = core.as_mut().filter(|_| self.links[node].up) {
            core.handle(cnova_agent_core::Event::Connected, now);
            while let Some(action) = core.poll_action() {
                if let cnova_agent_core::Action::Send(message @ cnova_agent_core::Message::Hello(_)) = action {
                    self.agent_says(node, message);
                }
            }
        }
        let again = self.now + self.rng.u64(1_000..30_000);
        self.net.at(again, Arrival::Restart(node.clone()));
    }
}

/// What an agent alarms of that cannot write.
pub(super) fn disk_is_full() -> Alarm {
    Alarm {
        code: "store".into(),
        detail: "the disk is full".into(),
    }
}
