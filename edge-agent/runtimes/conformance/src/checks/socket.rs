//! Many clients, and clients that mean no good.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use cnova_ral::{CONNECTIONS_MAX, CallError, ExitReason, REQUEST_BYTES_MAX, file};

use crate::bench::wait_for;
use crate::verdict::ensure;
use crate::{Behaviour, Bench, Fixture, Stop, Verdict, patience};

/// How long a close may take that is due at once; less than the time after which idle connections are closed anyway.
const CLOSE_PATIENCE: Duration = Duration::from_secs(15);
const CLIENTS: usize = 6;
const QUESTIONS: usize = 25;

fn running(fixture: &Fixture) -> Verdict<Bench> {
    let (mut bench, _) = Bench::of(fixture, Behaviour::RunsForever)?;
    bench.start_and_wait()?;
    Ok(bench)
}

/// By way of the process's own folder of descriptors, for a path may be too long for a socket.
fn raw(bench: &Bench) -> Verdict<BufReader<UnixStream>> {
    let stream = UnixStream::connect(bench.dir().join(file::SOCKET))?;
    stream.set_read_timeout(Some(patience()))?;
    stream.set_write_timeout(Some(patience()))?;
    Ok(BufReader::new(stream))
}

/// Runs `each` on some threads at once; the first failure counts.
fn at_once(each: impl Fn(usize) -> Verdict + Sync) -> Verdict {
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (each, failures) = (&each, &failures);
            scope.spawn(move || {
                if let Err(stop) = each(number)
                    && let Ok(mut failures) = failures.lock()
                {
                    failures.push(stop);
                }
            });
        }
    });
    match failures.into_inner().unwrap_or_default().into_iter().next() {
        Some(stop) => Err(stop),
        None => Ok(()),
    }
}

pub(super) fn many_clients_are_answered_at_once(fixture: &Fixture) -> Verdict {
    let bench = running(fixture)?;
    at_once(|number| {
        let mut client = bench.client()?;
        for question in 0..QUESTIONS {
            if (number + question) % 2 == 0 {
                client.health()?;
            } else {
                client.metrics()?;
            }
        }
        Ok(())
    })?;
    bench.ensure_healthy("many clients")
}

pub(super) fn a_stop_amid_other_questions(fixture: &Fixture) -> Verdict {
    let mut bench = running(fixture)?;
    at_once(|number| {
        let mut client = bench.client()?;
        for question in 0..QUESTIONS {
            let answer = match number {
                0 | 1 if question == 5 => client.stop(None),
                number if number % 2 == 0 => client.health().map(|_| ()),
                _ => client.metrics().map(|_| ()),
            };
            match answer {
                Ok(()) => {}
                // It has ended.
                Err(CallError::Connect { .. } | CallError::Broken { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
    .or_else(|stop| match stop {
        // It was gone before this client came.
        Stop::Failed(reason) if reason.starts_with("no runtime listens") => Ok(()),
        other => Err(other),
    })?;
    let exit = bench.exit()?;
    ensure!(
        exit.reason == ExitReason::Stopped,
        "two stops amid other questions: {exit:?}"
    );
    Ok(())
}

pub(super) fn garbage_harms_nothing(fixture: &Fixture) -> Verdict {
    let bench = running(fixture)?;
    let nested = [b"{\"op\":".as_slice(), &b"[".repeat(3000), b"\n"].concat();
    let lines: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\n",
        b"{}\n",
        b"{\"op\":\"fly\"}\n",
        b"{\"op\":\"stop\",\"grace_ms\":-1}\n",
        b"{\"op\":\"health\"\n",
        b"\xff\xfe\x00{\"op\":\"health\"}\n",
        &nested,
    ];
    for line in lines {
        expect_refusal(&bench, line)?;
    }
    // Too long, with and without an end.
    expect_refusal(&bench, &[b' '; REQUEST_BYTES_MAX * 2])?;
    expect_refusal(&bench, &[&b" ".repeat(REQUEST_BYTES_MAX * 2)[..], b"\n"].concat())?;
    for seed in 1..40_u64 {
        let mut stream = raw(&bench)?;
        // Some of it may be closed before it is written, and nobody reads the answers.
        let _ = stream.get_mut().write_all(&noise(seed));
    }
    let mut half = raw(&bench)?;
    half.get_mut().write_all(b"{\"op\":\"st")?;
    drop(half);
    bench.ensure_healthy("garbage on the socket")
}

/// Bytes that look like nothing; the same for the same seed.
fn noise(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let length = 1 + next() % 6000;
    (0..length).map(|_| next().to_le_bytes()[3]).collect()
}

/// It must say no and close the connection, and must not end the workload for it.
fn expect_refusal(bench: &Bench, bytes: &[u8]) -> Verdict {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    let mut stream = raw(bench)?;
    // It may be closed before everything is written.
    let _ = stream.get_mut().write_all(bytes);
    let mut answer = String::new();
    // A close with unread bytes may destroy the answer on the way; what counts then is that it is closed.
    let _ = stream.read_line(&mut answer);
    let refused = answer.is_empty() || answer.contains("\"ok\":false") || answer.contains("\"ok\": false");
    ensure!(refused, "to {shown:?} it answered {answer:?}");
    stream.get_ref().set_read_timeout(Some(CLOSE_PATIENCE))?;
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        let closed = error.kind() == std::io::ErrorKind::ConnectionReset;
        ensure!(closed, "after {shown:?} it does not close the connection: {error}");
    }
    Ok(())
}

pub(super) fn idle_connections_keep_nobody_out(fixture: &Fixture) -> Verdict {
    let bench = running(fixture)?;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX * 3 {
        idle.push(raw(&bench)?);
        // One at a time, so that they are not all in the queue when the next question comes.
        if idle.len() % CONNECTIONS_MAX == 0 {
            bench.ensure_healthy(&format!("{} idle connections", idle.len()))?;
        }
    }
    bench.ensure_healthy("many idle connections")?;
    // The first ones were closed for it.
    idle[0].get_ref().set_read_timeout(Some(CLOSE_PATIENCE))?;
    let mut rest = Vec::new();
    match idle[0].read_to_end(&mut rest) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(Stop::Failed(format!("the idlest connection is not closed: {error}"))),
    }
}

pub(super) fn slow_clients_keep_nobody_waiting(fixture: &Fixture) -> Verdict {
    let bench = running(fixture)?;
    let mut slow = raw(&bench)?;
    for byte in b"{\"op\":\"health\"}" {
        slow.get_mut().write_all(&[*byte])?;
        bench.client()?.health()?;
    }
    slow.get_mut().write_all(b"\n")?;
    let mut answer = String::new();
    slow.read_line(&mut answer)?;
    ensure!(
        answer.contains("\"healthy\""),
        "a question that came in pieces was answered with {answer:?}"
    );
    // One that asks and asks and never reads.
    let deaf = raw(&bench)?;
    let mut writer = deaf.get_ref().try_clone()?;
    writer.set_nonblocking(true)?;
    let questions = b"{\"op\":\"metrics\"}\n".repeat(200);
    for _ in 0..200 {
        if writer.write(&questions).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    bench.ensure_healthy("a client that never reads its answers")
}

pub(super) fn questions_may_follow_each_other(fixture: &Fixture) -> Verdict {
    let bench = running(fixture)?;
    let mut stream = raw(&bench)?;
    stream
        .get_mut()
        .write_all(b"{\"op\":\"health\"}\n{\"op\":\"metrics\"}\n{\"op\":\"health\"}\n")?;
    for field in ["healthy", "cpu_ms", "healthy"] {
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        let value: serde_json::Value = serde_json::from_str(&answer)?;
        ensure!(
            value["ok"] == true && !value[field].is_null(),
            "three questions in one piece: expected `{field}` in {answer:?}"
        );
    }
    let mut client = bench.client()?;
    for _ in 0..100 {
        client.health()?;
    }
    // Fields that it does not know are ignored in a question as well.
    stream
        .get_mut()
        .write_all(b"{\"op\":\"health\",\"a_field_of_the_future\":1}\n")?;
    let answer = wait_for("an answer", || {
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        Ok(Some(answer))
    })?;
    ensure!(answer.contains("healthy"), "an unknown field in a question: {answer:?}");
    Ok(())
}
