//! The checks, each of which starts the executable anew.

mod agent;
mod endings;
mod isolation;
mod life;
mod logs;
mod refusals;
mod socket;
mod stopping;

use crate::{Fixture, Verdict};

/// One thing that a runtime must do.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name, also that of the test that [`crate::conformance!`] makes of it.
    pub name: &'static str,
    run: fn(&Fixture) -> Verdict,
}

impl Check {
    /// Tries it. All processes and files that it makes are gone afterwards.
    ///
    /// # Errors
    /// Why it did not pass.
    pub fn run(&self, fixture: &Fixture) -> Verdict {
        (self.run)(fixture)
    }
}

macro_rules! checks {
    ($d:tt $($module:ident: $($name:ident)+;)+) => {
        /// All checks, in the order in which it is worth reading their failures.
        pub const CHECKS: &[Check] = &[
            $($(Check { name: stringify!($name), run: $module::$name },)+)+
        ];

        /// Part of [`conformance!`](crate::conformance).
        #[doc(hidden)]
        #[macro_export]
        macro_rules! with_check_names {
            ($d($d path:ident)::+, $d fixture:ident) => {
                $d crate::$d($d path)::+! { $d fixture; $($($name)+)+ }
            };
        }
    };
}

checks! { $
    life: every_behaviour_is_declared describes_itself wrong_usage_is_explained starts_and_is_known
        health_is_plausible metrics_are_plausible unknown_fields_are_ignored two_runtimes_never_share_a_folder
        a_folder_is_used_again;
    endings: an_exit_code_is_reported a_fault_is_a_trap a_fatal_signal_is_reported the_memory_limit_ends_it
        the_time_limit_ends_it the_exit_file_is_whole_and_before_the_end;
    stopping: a_stop_ends_it sigterm_is_a_stop force_follows_the_grace_time a_repeated_stop_never_lengthens_it
        a_stop_while_it_starts;
    refusals: a_bad_artifact_is_refused another_digest_is_refused another_part_is_refused
        a_missing_artifact_is_refused another_ral_is_refused an_unknown_setting_is_refused
        a_missing_spec_is_refused a_torn_spec_is_refused;
    logs: what_it_prints_is_logged_in_order the_log_is_bounded_and_rotates the_log_goes_on_over_attempts
        a_full_disk_costs_lines_and_nothing_else;
    socket: many_clients_are_answered_at_once a_stop_amid_other_questions garbage_harms_nothing
        idle_connections_keep_nobody_out slow_clients_keep_nobody_waiting questions_may_follow_each_other;
    agent: it_outlives_an_agent_killed_before_it_runs it_outlives_an_agent_killed_while_it_runs
        it_outlives_an_agent_killed_while_it_stops a_reused_pid_is_not_adopted a_killed_runtime_is_known_as_such;
    isolation: the_environment_is_only_the_spec_s standard_input_is_empty no_descriptor_is_inherited
        no_zombie_is_left everything_is_in_the_control_group nothing_survives_the_group_s_end;
}

#[cfg(test)]
mod tests {
    use super::CHECKS;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }
}
