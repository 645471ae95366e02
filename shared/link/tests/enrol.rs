//! The door for newcomers: what honest ones get, and what strangers cannot do.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cnova_link::enrol::{Asked, Door, DoorLimits, EnrolError, Newcomer};
use cnova_link::{FloorClock, read_trust, store_issued};
use cnova_root_of_trust::Soft;
use cnova_shared::wire::v1::{EnrolAnswer, EnrolBegin, EnrolChallenge, EnrolIssued, EnrolRefused, EnrolStep};
use rustls::pki_types::{CertificateDer, ServerName};
use support::{Files, Pki, node, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Tight, so that nobody waits.
fn limits() -> DoorLimits {
    DoorLimits {
        sessions: 3,
        per_address: 2,
        handshake: Duration::from_millis(800),
        step: Duration::from_millis(800),
        answer: Duration::from_millis(800),
    }
}

struct House {
    _dir: tempfile::TempDir,
    pki: Pki,
    door: Door,
    asked: mpsc::Receiver<Asked>,
}

async fn house(limits: DoorLimits) -> House {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path());
    let own = pki.issue("gw-1").load().certified();
    let (door, asked) = Door::open("127.0.0.1:0".parse().unwrap(), own, limits).await.unwrap();
    House {
        _dir: dir,
        pki,
        door,
        asked,
    }
}

impl House {
    fn newcomer(&self, server: &str) -> Newcomer {
        let root = Soft::open_or_create(&self.pki.dir.join("new.key")).unwrap();
        Newcomer {
            endpoints: vec![self.door.address().into()],
            server: node(server),
            name: None,
            token_file: None,
            trust: read_trust(&self.pki.dir.join("trust.cose")).unwrap(),
            clock: Arc::new(FloorClock::new(0)),
            root: Arc::new(root),
        }
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        connect(self.door.address(), &self.pki.authority).await.unwrap()
    }
}

/// A stranger who speaks TLS and nothing else right.
async fn connect(address: SocketAddr, authority: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(authority.to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("gw-1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn refused(gate: &str, passing: bool) -> EnrolAnswer {
    EnrolAnswer::Refused(EnrolRefused {
        gate: gate.into(),
        message: "no".into(),
        advice: "do".into(),
        passing,
    })
}

fn challenge() -> EnrolAnswer {
    EnrolAnswer::Challenge(EnrolChallenge {
        session: vec![1; 16],
        credential: None,
        nonce: vec![2; 32],
    })
}

/// What a hub would issue: the certificate of these files.
fn issued(files: &Files, name: &str) -> EnrolAnswer {
    let identity = files.load();
    EnrolAnswer::Issued(EnrolIssued {
        node: node(name),
        site: identity.site().unwrap().clone(),
        chain: identity.chain().into_iter().map(Into::into).collect(),
        bundles: Vec::new(),
        issued_s: 1,
        renew_s: 77,
    })
}

/// Answers the two steps of one newcomer; whether its proof held.
async fn serve(asked: &mut mpsc::Receiver<Asked>, last: EnrolAnswer) -> bool {
    let first = soon("begin", asked.recv()).await.unwrap();
    let EnrolStep::Begin(begin) = first.step else {
        panic!("begin")
    };
    first.reply.send(challenge()).unwrap();
    let second = soon("finish", asked.recv()).await.unwrap();
    let EnrolStep::Finish(finish) = second.step else {
        panic!("finish")
    };
    let holds = finish.session == [1; 16] && begin.key.verifies(&begin.to_be_signed(&[2; 32]), &finish.proof);
    second.reply.send(last).unwrap();
    holds
}

#[tokio::test]
async fn a_newcomer_proves_its_key_and_takes_only_what_is_for_it() {
    let mut house = house(DoorLimits::default()).await;
    let newcomer = house.newcomer("gw-1");
    let address = newcomer.endpoints[0].clone();
    // A certificate that is about another key.
    let others = house.pki.issue("plc-9");
    let answer = issued(&others, "plc-9");
    let (held, taken) = tokio::join!(serve(&mut house.asked, answer), newcomer.attempt(&address));
    assert!(held);
    assert!(matches!(taken, Err(EnrolError::Issued { .. })), "{taken:?}");
    // One about its own, under another name than it wants.
    let mine = house.pki.issue_for("plc-1", &*newcomer.root.device_key());
    let answer = issued(&mine, "plc-1");
    let named = Newcomer {
        name: Some(node("plc-2")),
        ..newcomer.clone()
    };
    let (_, taken) = tokio::join!(serve(&mut house.asked, answer.clone()), named.attempt(&address));
    assert!(matches!(taken, Err(EnrolError::Issued { .. })), "{taken:?}");
    let (_, taken) = tokio::join!(serve(&mut house.asked, answer), newcomer.attempt(&address));
    assert_eq!(taken.unwrap().node, node("plc-1"));
}

#[tokio::test]
async fn the_server_must_be_the_parent_that_was_named() {
    let house = house(DoorLimits::default()).await;
    let newcomer = house.newcomer("gw-2");
    let address = newcomer.endpoints[0].clone();
    let error = soon("an end", newcomer.attempt(&address)).await.unwrap_err();
    assert!(matches!(error, EnrolError::Unreachable { .. }), "{error}");
    // And of the tree in the trust bundle.
    let other = tempfile::tempdir().unwrap();
    let foreign = Pki::new(other.path());
    let own = foreign.issue("gw-1").load().certified();
    let (door, _asked) = Door::open("127.0.0.1:0".parse().unwrap(), own, limits()).await.unwrap();
    let error = house
        .newcomer("gw-1")
        .attempt(&door.address().into())
        .await
        .unwrap_err();
    assert!(matches!(error, EnrolError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn it_tries_again_until_it_is_let_in_and_reads_its_token_anew() {
    let mut house = house(DoorLimits::default()).await;
    let mut newcomer = house.newcomer("gw-1");
    let token = house.pki.dir.join("token");
    fs::write(&token, "first\n").unwrap();
    newcomer.token_file = Some(token.clone());
    let mine = house.pki.issue_for("plc-1", &*newcomer.root.device_key());
    let answer = issued(&mine, "plc-1");
    let asking = tokio::spawn(async move { newcomer.until_issued().await });
    let first = soon("begin", house.asked.recv()).await.unwrap();
    assert!(matches!(&first.step, EnrolStep::Begin(EnrolBegin { token: Some(t), .. }) if t == "first"));
    fs::write(&token, "second").unwrap();
    first.reply.send(refused("hub-away", true)).unwrap();
    let again = soon("again", house.asked.recv()).await.unwrap();
    assert!(matches!(&again.step, EnrolStep::Begin(EnrolBegin { token: Some(t), .. }) if t == "second"));
    // The daemon drops it: the newcomer is told to come again.
    drop(again);
    assert!(serve(&mut house.asked, answer).await);
    let issued = soon("it is let in", asking).await.unwrap();
    let file = house.pki.dir.join("deep/down/node.pem");
    store_issued(&file, &issued).unwrap();
    let key = house.pki.dir.join("new.key");
    let identity = cnova_link::Identity::load(&file, &key, &house.pki.dir.join("trust.cose")).unwrap();
    assert_eq!((identity.node(), identity.renew_s()), (&node("plc-1"), Some(77)));
}

/// Reads until the other side closes; nothing may come.
async fn is_closed(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut byte = [0];
    matches!(soon("the end", stream.read(&mut byte)).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn garbage_length_and_slowness_end_a_session() {
    let mut house = house(limits()).await;
    // Four gigabytes are announced.
    let mut greedy = house.tls().await;
    greedy.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert!(is_closed(&mut greedy).await);
    // What is no CBOR, and CBOR that is nested without end.
    for body in [vec![0xff; 64], [vec![0x81; 60_000], vec![0]].concat()] {
        let mut odd = house.tls().await;
        odd.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes())
            .await
            .unwrap();
        odd.write_all(&body).await.unwrap();
        assert!(is_closed(&mut odd).await);
    }
    // A frame that never ends, and a stranger who never even shakes hands.
    let mut slow = house.tls().await;
    slow.write_all(&[0, 0, 1, 0, 7]).await.unwrap();
    let mut silent = TcpStream::connect(house.door.address()).await.unwrap();
    assert!(is_closed(&mut slow).await);
    let mut byte = [0];
    assert!(matches!(soon("the end", silent.read(&mut byte)).await, Ok(0) | Err(_)));
    assert!(house.asked.try_recv().is_err(), "the daemon heard of none of it");
}

#[tokio::test]
async fn one_address_cannot_take_every_place() {
    let mut house = house(DoorLimits {
        step: Duration::from_secs(60),
        ..limits()
    })
    .await;
    let (first, _second) = (house.tls().await, house.tls().await);
    let third = connect(house.door.address(), &house.pki.authority).await;
    let closed = match third {
        Err(_) => true,
        Ok(mut stream) => is_closed(&mut stream).await,
    };
    assert!(closed, "two at once from one address");
    drop(first);
    let mine = house.pki.issue_for("plc-1", &*house.newcomer("gw-1").root.device_key());
    let answer = issued(&mine, "plc-1");
    let newcomer = house.newcomer("gw-1");
    // The place is free once the door has noticed.
    let asking = tokio::spawn(async move { newcomer.until_issued().await });
    assert!(serve(&mut house.asked, answer).await);
    soon("it is let in", asking).await.unwrap();
}

#[tokio::test]
async fn a_hub_that_does_not_answer_is_not_waited_for_without_end() {
    let mut house = house(limits()).await;
    let newcomer = house.newcomer("gw-1");
    let address = newcomer.endpoints[0].clone();
    let (asked, error) = tokio::join!(soon("begin", house.asked.recv()), newcomer.attempt(&address));
    match error.unwrap_err() {
        EnrolError::Refused(refused) => assert!(refused.gate == "busy" && refused.passing),
        other => panic!("{other}"),
    }
    assert!(asked.unwrap().reply.is_closed(), "nobody waits any more");
}
