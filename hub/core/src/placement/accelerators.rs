//! Whether claims can all be met at once: each accelerator serves one workload, and each claim takes one.

use cnova_shared::wire::v1::Accelerator;

/// Whether an accelerator is what a claim asks for: by class (`npu`) or by kind (`hailo-8`).
pub(super) fn is_meant(accelerator: &Accelerator, claim: &str) -> bool {
    accelerator.class == claim || accelerator.kind == claim
}

/// Whether every claim can have an accelerator of its own. A claim by class may have to make way for one by kind, so
/// that this is a matching and not first come, first served.
pub(super) fn all_met(accelerators: &[Accelerator], claims: &[&str]) -> bool {
    let mut holder: Vec<Option<usize>> = vec![None; accelerators.len()];
    (0..claims.len()).all(|claim| {
        let mut tried = vec![false; accelerators.len()];
        find(accelerators, claims, claim, &mut holder, &mut tried)
    })
}

fn find(all: &[Accelerator], claims: &[&str], claim: usize, holder: &mut [Option<usize>], tried: &mut [bool]) -> bool {
    for (i, accelerator) in all.iter().enumerate() {
        if tried[i] || !is_meant(accelerator, claims[claim]) {
            continue;
        }
        tried[i] = true;
        let free = match holder[i] {
            None => true,
            Some(other) => find(all, claims, other, holder, tried),
        };
        if free {
            holder[i] = Some(claim);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accelerator(class: &str, kind: &str) -> Accelerator {
        Accelerator {
            id: kind.into(),
            class: class.into(),
            kind: kind.into(),
        }
    }

    #[test]
    fn a_claim_by_class_makes_way_for_one_by_kind() {
        let two = [accelerator("npu", "hailo-8"), accelerator("npu", "intel-npu")];
        assert!(all_met(&two, &["npu", "hailo-8"]));
        assert!(all_met(&two, &["npu", "npu"]));
        assert!(all_met(&two, &[]));
        assert!(!all_met(&two, &["hailo-8", "hailo-8"]));
        assert!(!all_met(&two, &["npu", "npu", "hailo-8"]));
        assert!(!all_met(&two, &["gpu"]));
        assert!(!all_met(&[], &["npu"]));
    }
}
