use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

fn whole(out: &BytesMut) {
    assert_eq!(frame_len(out, usize::MAX).unwrap(), Some(out.len()));
}

#[test]
fn what_we_write_has_the_length_it_says() {
    for payload_len in [0, 1, 100, 127, 128, 16_000, 16_384, 2_100_000] {
        let mut out = BytesMut::new();
        publish(&mut out, "cnova/v1/a/down/twin", Some(7), &vec![1; payload_len]);
        whole(&out);
        assert_eq!(out.len(), publish_len("cnova/v1/a/down/twin".len(), payload_len));
    }
    let mut out = BytesMut::new();
    connack(
        &mut out,
        0,
        Some(Announcement {
            max_packet_bytes: 9,
            receive_maximum: 9,
            keep_alive_secs: Some(9),
        }),
        "x",
    );
    whole(&out);
    out.clear();
    disconnect(&mut out, reason::QUOTA_EXCEEDED, &"slow ".repeat(100));
    whole(&out);
    out.clear();
    suback(&mut out, 1, &[0, 0x87]);
    whole(&out);
}

#[test]
fn a_publish_is_read_as_it_was_written() {
    let mut out = BytesMut::new();
    publish(&mut out, "cnova/v1/a/up/hello", Some(7), b"payload");
    let Incoming::Publish(read) = decode(&out).unwrap() else {
        panic!("not a publish")
    };
    assert_eq!(
        (read.topic.as_str(), read.packet_id, &read.payload[..]),
        ("cnova/v1/a/up/hello", Some(7), &b"payload"[..])
    );
}

#[test]
fn a_packet_above_the_limit_is_refused_by_its_header() {
    assert_eq!(
        frame_len(&[0x30, 0xff, 0xff, 0x7f], 1000).unwrap_err().reason,
        reason::PACKET_TOO_LARGE
    );
    assert_eq!(frame_len(&[0x30, 0xff], 1000).unwrap(), None);
    assert_eq!(
        frame_len(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x01], 1000)
            .unwrap_err()
            .reason,
        reason::MALFORMED_PACKET
    );
}

#[test]
fn packets_that_only_a_server_sends_are_refused() {
    for first in [0x20, 0x90, 0xb0, 0xd0, 0xf0, 0x00, 0x50, 0x62, 0x70] {
        assert!(decode(&[first, 2, 0, 1]).is_err(), "{first:#x}");
        assert!(decode(&[first, 0]).is_err(), "{first:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    // Release builds abort on a panic: whatever a child sends must come back as an error.
    #[test]
    fn no_bytes_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..200), first in 0u8..=255) {
        let _ = frame_len(&packet, 100);
        let _ = decode(&packet);
        let _ = decode_connect(&packet);
        let remaining = packet.len().saturating_sub(2);
        if packet.len() >= 2 && remaining < 128 {
            packet[0] = first;
            packet[1] = remaining as u8;
            let _ = decode(&packet);
            packet[0] = 0x10;
            let _ = decode_connect(&packet);
            if packet.len() >= 9 {
                packet[2..9].copy_from_slice(&[0, 4, b'M', b'Q', b'T', b'T', 5]);
                let _ = decode_connect(&packet);
            }
        }
    }
}
