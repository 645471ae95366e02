//! Where a device is plugged in, as a name that is the same after each start.

use std::path::Path;

/// A PCI address: `0000:00:0b.0`, with a longer domain on some machines.
pub(super) fn is_pci(name: &str) -> bool {
    let hex = |text: &str, min: usize, max: usize| {
        (min..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let mut parts = name.split(':');
    let (domain, bus, slot) = (parts.next(), parts.next(), parts.next());
    let (Some(domain), Some(bus), Some((slot, function))) = (domain, bus, slot.and_then(|s| s.split_once('.'))) else {
        return false;
    };
    parts.next().is_none() && hex(domain, 4, 8) && hex(bus, 2, 2) && hex(slot, 2, 2) && hex(function, 1, 1)
}

/// A USB device, not an interface of one: `1-2.1` is port 1 of what is in port 2 of bus 1.
pub(super) fn is_usb(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once('-')
        .is_some_and(|(bus, ports)| digits(bus) && ports.split('.').all(digits))
}

/// `pci-<address>`, `usb-<controller>-<ports>`, or the device's own name, which is an address for devices of the chip.
/// The path is that of a device in sysfs, without links.
pub(super) fn name(device: &Path) -> String {
    let parts: Vec<&str> = device.iter().filter_map(|part| part.to_str()).collect();
    for (depth, part) in parts.iter().enumerate().rev() {
        if is_pci(part) {
            return plain(&format!("pci-{part}"));
        }
        if is_usb(part) {
            let ports = part.split_once('-').map_or("", |(_, ports)| ports);
            return plain(&format!("usb-{}-{ports}", controller(&parts[..depth], part)));
        }
    }
    plain(parts.last().unwrap_or(&"device"))
}

/// What the bus hangs on. Buses are numbered in the order of their drivers' start, and so are `xhci-hcd.1.auto`.
fn controller<'a>(above: &[&'a str], device: &'a str) -> &'a str {
    let bus = device.split_once('-').map_or("", |(bus, _)| bus);
    let Some(at) = above.iter().position(|part| part.strip_prefix("usb") == Some(bus)) else {
        return bus;
    };
    let mut up = above[..at].iter().rev().copied();
    up.find(|part| !part.starts_with("xhci-hcd")).unwrap_or(bus)
}

/// Lower-case letters, digits, `-` and `.`: ids become names of files and variables.
fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        'a'..='z' | '0'..='9' | '.' => c,
        'A'..='Z' => c.to_ascii_lowercase(),
        _ => '-',
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_do_not_depend_on_the_order_of_drivers() {
        for (path, expected) in [
            ("/sys/devices/pci0000:00/0000:00:0b.0", "pci-0000-00-0b.0"),
            ("/sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0", "pci-0000-03-00.0"),
            ("/sys/devices/pci10000:e0/10000:e1:00.0", "pci-10000-e1-00.0"),
            ("/sys/devices/pci0000:00/0000:00:02.0/virtio7", "pci-0000-00-02.0"),
            (
                "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4",
                "usb-0000-00-14.0-1.4",
            ),
            (
                "/sys/devices/platform/fc000000.usb/xhci-hcd.3.auto/usb5/5-1",
                "usb-fc000000.usb-1",
            ),
            ("/sys/devices/platform/fdab0000.npu", "fdab0000.npu"),
            ("/sys/devices/platform/soc/soc:GPU", "soc-gpu"),
            ("/1-1", "usb-1-1"),
        ] {
            assert_eq!(name(Path::new(path)), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_has_a_plain_name(path in "(/[ -~ä]{0,12}){0,6}") {
            let name = name(Path::new(&path));
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            prop_assert!(name.chars().all(plain), "{name}");
        }
    }
}
