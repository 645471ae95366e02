//! Enrolment with the real programs and software TPMs: hub, gateway, agent, and what may go wrong between them.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use cnova_root_of_trust::RootOfTrust;
use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use cnova_shared::ids::Digest;
use enrolment_support::{AGENT, GATEWAY, HUB, Plant, Root};

/// A TPM by a maker; nothing where swtpm is not installed, which is said on stderr.
fn tpm(maker: &Maker) -> Option<Swtpm> {
    Swtpm::start_by(maker, Some(EkKind::P384))
}

#[test]
fn tokens_admit_once_and_names_stay_with_their_tpm() {
    let maker = Maker::new();
    let (Some(first), Some(second)) = (tpm(&maker), tpm(&maker)) else {
        return;
    };
    let mut plant = Plant::new("allow_soft = true\n", &[&maker]);
    plant.start(HUB);
    // The gateway enrols with a key in a file, at the hub's own door.
    let token = plant.token(&["--site", "plant-7/line-2", "--name", GATEWAY]);
    plant.configure(GATEWAY, HUB, &Root::Soft, Some(&token));
    plant.start(GATEWAY);
    plant.wait("the gateway says hello", |p| {
        p.trust_of(GATEWAY).as_deref() == Some("UNATTESTED")
    });

    // The agent, with its TPM, at the gateway's.
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(first.tcti()), Some(&token));
    plant.start(AGENT);
    plant.wait("the agent says hello", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    let info = plant.enrolment();
    assert!(
        info["tokens"].as_array().unwrap().iter().all(|t| t["uses_left"] == 0),
        "{info}"
    );
    assert_eq!(info["nodes"].as_array().unwrap().len(), 2, "{info}");
    plant.stop(AGENT);

    // The same token again, from another TPM.
    plant.configure(AGENT, GATEWAY, &Root::Tpm(second.tcti()), Some(&token));
    plant.forget_certificate(AGENT);
    plant.start(AGENT);
    plant.wait("the token is spent", |p| {
        p.log(AGENT).contains("the token was used already (token)")
    });
    plant.stop(AGENT);

    // A fresh token does not give that TPM the name of the first.
    let fresh = plant.token(&["--site", "plant-7/line-2/plc-1", "--uses", "5"]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(second.tcti()), Some(&fresh));
    plant.start(AGENT);
    plant.wait("the name is another's", |p| {
        p.log(AGENT).contains("plc-1 belongs to another TPM (bound)")
    });
    plant.stop(AGENT);

    // And no key in a file does either.
    plant.configure(AGENT, GATEWAY, &Root::Soft, Some(&fresh));
    plant.start(AGENT);
    plant.wait("a downgrade is refused", |p| p.log(AGENT).contains("(downgrade)"));
    plant.stop(AGENT);

    // The first TPM is let in again with nothing but itself.
    plant.configure(AGENT, GATEWAY, &Root::Tpm(first.tcti()), None);
    plant.start(AGENT);
    plant.wait("it is back", |p| p.certificate(AGENT).is_some());

    // An expired one.
    let late = plant.token(&["--site", "plant-7/line-2/plc-2", "--expires", "1s"]);
    plant.configure("plc-2", GATEWAY, &Root::Soft, Some(&late));
    std::thread::sleep(std::time::Duration::from_millis(2100));
    plant.start("plc-2");
    plant.wait("the token has expired", |p| {
        p.log("plc-2").contains("the token has expired (token)")
    });

    let audit = plant.cnova(&["get", "audit", "-o", "json"]);
    for word in ["enrol-token", "\"enrol\"", "another TPM (bound)", "(downgrade)"] {
        assert!(audit.contains(word), "{word} is not in {audit}");
    }
    for text in [&token, &fresh, &late] {
        let said = [plant.log(HUB), plant.log(GATEWAY), plant.log(AGENT), audit.clone()].concat();
        assert!(!said.contains(text.as_str()), "a token is in a log");
    }
}

#[test]
fn a_known_tpm_needs_no_token_and_outlasts_what_is_away() {
    let (maker, stranger) = (Maker::new(), Maker::new());
    let (Some(mut known), Some(foreign)) = (tpm(&maker), tpm(&stranger)) else {
        return;
    };
    let mut plant = Plant::new("", &[&maker]);
    plant.issue(GATEWAY, "plant-7/line-2");
    plant.configure_certified(GATEWAY, HUB);
    plant.start(HUB);
    plant.start(GATEWAY);
    plant.wait("the gateway says hello", |p| p.trust_of(GATEWAY).is_some());

    // By its certificate for one, by its key for the other.
    let shown = cnova_root_of_trust::Tpm::open(known.config())
        .unwrap()
        .enrolment(b"who")
        .unwrap();
    let file = plant.write("ek.der", &shown.ek_certificates[0]);
    plant.cnova(&[
        "enroll",
        "ek",
        "--certificate",
        &file,
        "--name",
        AGENT,
        "--site",
        "plant-7/line-2/plc-1",
    ]);
    let shown = cnova_root_of_trust::Tpm::open(foreign.config())
        .unwrap()
        .enrolment(b"who")
        .unwrap();
    let print = Digest::of(&shown.ek_public).hex();
    plant.cnova(&[
        "enroll",
        "ek",
        "--fingerprint",
        &print,
        "--name",
        "plc-2",
        "--site",
        "plant-7/line-2/plc-2",
    ]);

    // Known or not: its maker is none that this hub takes TPMs from.
    plant.configure("plc-2", GATEWAY, &Root::Tpm(foreign.tcti()), None);
    plant.start("plc-2");
    plant.wait("its maker is not trusted", |p| p.log("plc-2").contains("(ek-chain)"));
    plant.stop("plc-2");

    // The hub is away.
    plant.kill(HUB);
    plant.wait("the gateway has noticed", |p| p.log(GATEWAY).contains("not connected"));
    plant.configure(AGENT, GATEWAY, &Root::Tpm(known.tcti()), None);
    plant.start(AGENT);
    let away = "the hub cannot be reached through line-gw (hub-away): try again";
    plant.wait("it is told so", |p| p.log(AGENT).contains(away));
    // Then its TPM is, in the middle of an enrolment that goes on.
    known.kill();
    plant.start(HUB);
    plant.wait("the TPM is missed", |p| {
        p.log(AGENT).contains("this node could not prove itself")
    });
    known.restart();
    plant.wait("it is a node", |p| p.trust_of(AGENT).as_deref() == Some("warning"));
    assert_eq!(
        plant.log(AGENT).matches("cannot be reached through").count(),
        1,
        "once is enough"
    );
}

#[test]
fn certificates_renew_by_themselves_and_a_node_from_the_shelf_is_let_in_again() {
    let maker = Maker::new();
    let Some(chip) = tpm(&maker) else { return };
    let mut plant = Plant::new("lifetime = \"24s\"\n", &[&maker]);
    plant.start(HUB);
    let token = plant.token(&["--site", "plant-7/plc-1"]);
    plant.configure(AGENT, HUB, &Root::Tpm(chip.tcti()), Some(&token));
    plant.start(AGENT);
    plant.wait("it is a node", |p| p.trust_of(AGENT).as_deref() == Some("warning"));
    let first = plant.certificate(AGENT).unwrap();
    plant.wait("the certificate is renewed", |p| {
        p.certificate(AGENT).is_some_and(|c| c != first)
    });
    plant.wait("it was said", |p| p.log(AGENT).contains("the certificate was renewed"));
    assert!(
        !plant.log(AGENT).contains("there is no certificate that is valid now"),
        "{}",
        plant.log(AGENT)
    );
    assert_eq!(plant.enrolment()["nodes"].as_array().unwrap().len(), 1);

    // A year on the shelf, as far as its certificate is concerned; the token was for once.
    plant.stop(AGENT);
    let last = plant.certificate(AGENT).unwrap();
    plant.configure(AGENT, HUB, &Root::Tpm(chip.tcti()), None);
    std::thread::sleep(std::time::Duration::from_secs(26));
    plant.start(AGENT);
    plant.wait("its TPM lets it in", |p| {
        p.certificate(AGENT).is_some_and(|c| c != last)
    });
    assert!(
        plant
            .log(AGENT)
            .contains("there is no certificate that is valid now: enrolling")
    );
    let heard = plant.now_ms();
    plant.wait("it speaks", |p| p.heard_ms(AGENT).is_some_and(|at| at >= heard));
}
