//! The keeper: first process of a PID namespace, with one thread, that makes the container and reaps.
//!
//! Its death is the death of everything in its namespace, and it dies with the shim. It makes the container's user
//! namespace, mounts and processes with libcontainer, which changes the working directory, the dumpable flag and the
//! OOM score of its caller: here they are nobody else's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cnova_ral::settings::{Container as Settings, Isolation, Network, Probe};
use cnova_ral::{Secrets, Spec};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec as OciSpec};
use libcontainer::syscall::syscall::SyscallType;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::cgroup::WorkloadGroup;
use crate::complaints;
use crate::config::Config;
use crate::exec;
use crate::executor::{FilteredExecutor, enter_group};
use crate::external::{self, External, ExternalError};
use crate::idmap;
use crate::image::{self, ImageError, LoadedImage};
use crate::messages::{Channel, Order, Received, Report};
use crate::network::{self, NetworkError};
use crate::oci::{self, OciError, Plan};
use crate::probe;
use crate::rootfs::{self, Node, RootfsError, TREE};
use crate::seccomp;
use crate::signals;
use crate::sys::{self, Ended, Forked};
use crate::user::{self, UserError};

/// Longest name of a host.
const HOSTNAME_BYTES_MAX: usize = 63;

/// How often a program that is to end is looked at for a handler of the signal.
const LISTEN_AGAIN: Duration = Duration::from_millis(20);

/// What the keeper is given by the shim.
pub(crate) struct Job {
    pub(crate) spec: Spec,
    pub(crate) secrets: Secrets,
    pub(crate) settings: Settings,
    pub(crate) config: Config,
    pub(crate) nodes: Vec<Node>,
    /// Names the container, its network interface and its state.
    pub(crate) id: String,
    pub(crate) group: WorkloadGroup,
    pub(crate) doors: Vec<OwnedFd>,
    pub(crate) channel: Channel,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Oci(#[from] OciError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    External(#[from] ExternalError),
    #[error("settings.probe: `{0}` is no path of a URL")]
    ProbePath(String),
    #[error("settings.probe: a command has at least one word")]
    ProbeCommand,
    #[error("cannot make the container: {0}")]
    Create(String),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
}

fn system(action: &'static str) -> impl Fn(io::Error) -> KeeperError {
    move |source| KeeperError::System { action, source }
}

/// Runs to the container's end and reports it.
pub(crate) fn run(job: Job) -> ! {
    let channel = job.channel.clone();
    complaints::listen();
    let kept: Vec<RawFd> = job
        .doors
        .iter()
        .chain([&job.stdout, &job.stderr])
        .map(AsRawFd::as_raw_fd)
        .collect();
    let kept = [&kept[..], &[channel.as_fd().as_raw_fd()]].concat();
    // SAFETY: this process ends in this function, so that nothing of the frames that it shares with the shim, which own
    // what is closed here, is ever used or dropped.
    if let Err(error) = unsafe { sys::close_all_but(&kept) } {
        eprintln!("cannot close the shim's files: {error}");
        sys::exit(1)
    }
    let report = match keep(job) {
        Ok(Some(Ended::Code(code))) => Report::Ended {
            code: Some(code),
            signal: None,
        },
        Ok(Some(Ended::Signal(signal))) => Report::Ended {
            code: None,
            signal: Some(signal),
        },
        // The shim is gone, and this process soon is.
        Ok(None) => sys::exit(1),
        Err(error) => Report::Refused(error.to_string()),
    };
    let _ = channel.send(&report);
    sys::exit(0)
}

fn keep(job: Job) -> Result<Option<Ended>, KeeperError> {
    let death = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(death).map_err(|e| system("tie myself to the shim")(e.into()))?;
    let children = sys::signal_fd(&[libc::SIGCHLD]).map_err(system("receive signals"))?;
    check(&job.settings)?;
    let image = image::load(&job.spec, job.config.id_base)?;
    let Some(mut kept) = Kept::create(job, &image, children)? else {
        return Ok(None);
    };
    kept.channel.send(&Report::Created).map_err(system("report"))?;
    match kept.channel.wait() {
        Ok(Received::Message(Order::Start)) => kept.start()?,
        _ => return Ok(None),
    }
    Ok(kept.watch())
}

fn check(settings: &Settings) -> Result<(), KeeperError> {
    if let Network::Own(own) = &settings.network {
        network::check(own)?;
    }
    match &settings.probe {
        Some(Probe::Http(http)) if !probe::is_path(&http.path) => Err(KeeperError::ProbePath(http.path.clone())),
        Some(Probe::Exec(words)) if words.is_empty() => Err(KeeperError::ProbeCommand),
        _ => Ok(()),
    }
}

/// Who made the container.
enum Maker {
    Own(Box<Container>, FilteredExecutor),
    Installed(External),
}

/// The container, and what is needed to look after it.
struct Kept {
    maker: Maker,
    init: libc::pid_t,
    id: String,
    settings: Settings,
    stop_signal: i32,
    channel: Channel,
    children: OwnedFd,
    doors: Vec<OwnedFd>,
    network: Option<OwnedFd>,
    question: Option<(libc::pid_t, Instant)>,
    /// It is to be asked to end, and has no ear for it yet.
    to_ask: bool,
}

impl Kept {
    fn create(job: Job, image: &LoadedImage, children: OwnedFd) -> Result<Option<Kept>, KeeperError> {
        let base = job.config.id_base;
        rootfs::begin()?;
        rootfs::own_proc()?;
        let root = rootfs::overlay(image)?;
        let defaults = &image.config.process;
        let user = user::resolve(&root, job.settings.user.as_deref().unwrap_or(&defaults.user))?;
        // A process more: only for what is mounted.
        let mounts = if job.spec.mounts.is_empty() {
            Vec::new()
        } else {
            let mapping = idmap::user_namespace(base).map_err(system("make a user namespace"))?;
            rootfs::mounts(&job.spec, &user, &mapping, base)?
        };
        let secret_files = rootfs::secrets(&job.secrets, &user, base)?;
        rootfs::devices(&job.nodes, &user, base)?;
        let hostname = hostname(&job.spec.workload);
        let own = match &job.settings.network {
            Network::Own(own) => Some(own.address),
            Network::None | Network::Host => None,
        };
        let named = job.settings.network != Network::None;
        rootfs::files(&hostname, own.map(|address| address.to_string()), named)?;
        for pipe in [&job.stdout, &job.stderr] {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(base + user.uid),
                rustix::fs::Gid::from_raw(base + user.gid),
            );
            // Programs that open `/dev/stdout` need it to be theirs.
            rustix::fs::fchown(pipe, Some(uid), Some(gid)).map_err(|e| system("hand over the output")(e.into()))?;
        }
        let external = job.settings.isolation != Isolation::Process;
        let filter = seccomp::profile(&job.settings.seccomp.allow).map_err(OciError::Build)?;
        let tree = if external { Path::new(TREE) } else { Path::new("/") };
        let in_tree = |paths: &[PathBuf]| -> Vec<PathBuf> {
            let inside = |path: &PathBuf| tree.join(path.strip_prefix("/").unwrap_or(path));
            paths.iter().map(inside).collect()
        };
        let plan = Plan {
            spec: &job.spec,
            settings: &job.settings,
            defaults,
            user: &user,
            nodes: &job.nodes,
            mounts: &in_tree(&mounts),
            secrets: &job.secrets,
            secret_files: &in_tree(&secret_files),
            tree,
            hostname: &hostname,
            id_base: base,
            filter: external.then(|| filter.clone()),
        };
        let description = oci::describe(&plan)?;
        write_bundle(&description)?;
        let stop_signal = signals::stop_signal(&defaults.stop_signal);
        let (maker, init) = if external {
            make_installed(&job)?
        } else {
            make_own(&job, filter)?
        };
        let network = match job.settings.network {
            Network::Host => None,
            _ => Some(namespace_of(init)?),
        };
        let kept = Kept {
            maker,
            init,
            id: job.id,
            settings: job.settings,
            stop_signal,
            channel: job.channel,
            children,
            doors: job.doors,
            network,
            question: None,
            to_ask: false,
        };
        kept.connect()?;
        Ok(Some(kept))
    }

    fn connect(&self) -> Result<(), KeeperError> {
        if let Some(namespace) = &self.network {
            network::loopback(namespace.as_fd())?;
            if let Network::Own(own) = &self.settings.network {
                network::connect(namespace.as_fd(), &self.id, own)?;
            }
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), KeeperError> {
        match &mut self.maker {
            Maker::Own(container, _) => container.start().map_err(|e| KeeperError::Create(chain(&e))),
            Maker::Installed(runtime) => Ok(runtime.start()?),
        }
    }

    /// Waits for the end of the container's first process; nothing if the shim is gone first.
    fn watch(&mut self) -> Option<Ended> {
        loop {
            self.wait();
            while sys::next_signal(&self.children).is_some() {}
            if let Some(ended) = self.reap() {
                // What an installed runtime keeps of it goes with this process: its files with the mounts, its groups with
                // the container's, whose counters the shim still wants to read.
                return Some(ended);
            }
            if self.question.is_some_and(|(_, end)| Instant::now() >= end)
                && let Some((pid, _)) = self.question.take()
            {
                sys::kill(pid, libc::SIGKILL);
                self.answer(Some(format!("the probe did not answer within {:?}", probe::PATIENCE)));
            }
            self.ask_to_end();
            match self.channel.receive() {
                Ok(Received::Message(order)) => self.obey(order),
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) | Err(_) => return None,
            }
        }
    }

    fn wait(&self) {
        let answer = self
            .question
            .map(|(_, end)| end.saturating_duration_since(Instant::now()));
        let listening = self.to_ask.then_some(LISTEN_AGAIN);
        let timeout = answer
            .into_iter()
            .chain(listening)
            .min()
            .and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [
            PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }

    /// Every child is reaped, also those that the container's processes left behind: one that is not would keep the
    /// container's namespace from ending.
    fn reap(&mut self) -> Option<Ended> {
        let mut end = None;
        while let Some((pid, ended)) = sys::reap(-1) {
            if pid == self.init {
                end = Some(ended);
            }
            if self.question.is_some_and(|(asked, _)| asked == pid) {
                self.question = None;
                // It has sent its answer itself, unless something ended it.
                if ended != Ended::Code(0) {
                    self.answer(Some("the probe was ended from outside".into()));
                }
            }
        }
        end
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start => {}
            Order::Terminate => {
                self.to_ask = true;
                self.ask_to_end();
            }
            Order::Kill => {
                if let Maker::Installed(runtime) = &self.maker {
                    let _ = runtime.kill(libc::SIGKILL);
                }
                // All processes of the namespace but this one.
                sys::kill(-1, libc::SIGKILL);
            }
            Order::Probe => self.ask(),
        }
    }

    /// The kernel drops signals for the first process of a namespace that it has no handler for. A program that has only
    /// just begun gets the signal when it has made one; one that never does is ended by force after the grace time.
    fn ask_to_end(&mut self) {
        if !self.to_ask || !signals::hears(self.init, self.stop_signal) {
            return;
        }
        self.to_ask = false;
        match &self.maker {
            Maker::Own(..) => sys::kill(self.init, self.stop_signal),
            Maker::Installed(runtime) => {
                let _ = runtime.kill(self.stop_signal);
            }
        }
    }

    fn ask(&mut self) {
        if self.question.is_some() {
            return;
        }
        // SAFETY: this process has one thread.
        match unsafe { sys::fork(false) } {
            Ok(Forked::Parent(pid)) => {
                // What asks also counts the time; this is for when it cannot.
                self.question = Some((pid, Instant::now() + probe::PATIENCE * 3 / 2));
            }
            Ok(Forked::Child) => {
                let complaint = self.question_asked();
                self.answer(complaint);
                sys::exit(0)
            }
            Err(error) => self.answer(Some(format!("cannot ask: {error}"))),
        }
    }

    fn answer(&self, complaint: Option<String>) {
        let _ = self.channel.send(&Report::Health(complaint));
    }

    fn question_asked(&self) -> Option<String> {
        match (&self.settings.probe, &self.maker) {
            (None, _) => None,
            (Some(Probe::Exec(words)), Maker::Own(_, executor)) => self.exec(words, executor),
            (Some(Probe::Exec(words)), Maker::Installed(runtime)) => {
                let _ = enter_group(&self.doors);
                let error = runtime.exec(words).process_group(0).spawn().map(|child| {
                    let pid = libc::pid_t::try_from(child.id()).unwrap_or(libc::pid_t::MAX);
                    let ended = sys::reap_within(pid, probe::PATIENCE);
                    sys::kill(-pid, libc::SIGKILL);
                    probe::judge(ended)
                });
                error.unwrap_or_else(|error| Some(error.to_string()))
            }
            (Some(probe), _) => {
                let own = match &self.settings.network {
                    Network::Own(own) => Some(own.address),
                    Network::None | Network::Host => None,
                };
                probe::ask_network(probe, self.network.as_ref(), own)
            }
        }
    }

    /// A command in the container, with all that confines it: the group, the filter, the user and no more rights.
    fn exec(&self, words: &[String], executor: &FilteredExecutor) -> Option<String> {
        let run = || -> Result<Option<Ended>, KeeperError> {
            enter_group(&self.doors).map_err(system("enter the container's group"))?;
            let mut description =
                OciSpec::load("/bundle/config.json").map_err(|e| KeeperError::Oci(OciError::Build(e)))?;
            if let Some(process) = description.process_mut() {
                process.set_args(Some(words.to_vec()));
            }
            let container = cnova_ral::pidfd_open(self.init.unsigned_abs()).map_err(system("find the container"))?;
            let command = exec::Command {
                description: &description,
                executor,
                container: &container,
                own_network: self.network.is_some(),
            };
            exec::run(&command, probe::PATIENCE).map_err(system("enter the container"))
        };
        run().map_or_else(|error| Some(error.to_string()), probe::judge)
    }
}

fn make_own(job: &Job, filter: LinuxSeccomp) -> Result<(Maker, libc::pid_t), KeeperError> {
    rootfs::enter()?;
    let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(system("share a descriptor"));
    let doors: Vec<OwnedFd> = job.doors.iter().map(duplicate).collect::<Result<_, _>>()?;
    let first = FilteredExecutor {
        filter: filter.clone(),
        doors: Arc::new(doors),
    };
    let container = ContainerBuilder::new(job.id.clone(), SyscallType::default())
        .with_executor(first)
        .with_root_path("/state")
        .map_err(|e| KeeperError::Create(chain(&e)))?
        .with_stdout(duplicate(&job.stdout)?)
        .with_stderr(duplicate(&job.stderr)?)
        .as_init("/bundle")
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| KeeperError::Create(chain(&e)))?;
    let init = container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or_else(|| KeeperError::Create("it has no first process".into()))?;
    // Who is sent into the container later has entered the group before.
    let executor = FilteredExecutor {
        filter,
        doors: Arc::default(),
    };
    Ok((Maker::Own(Box::new(container), executor), init))
}

fn make_installed(job: &Job) -> Result<(Maker, libc::pid_t), KeeperError> {
    let (names, kind) = match job.settings.isolation {
        Isolation::Vm => (&job.config.vm, "vm"),
        _ => (&job.config.sandbox, "sandbox"),
    };
    let runtime = External::new(names, kind, &job.id)?;
    enter_group(&job.doors).map_err(system("limit the container"))?;
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(system("make a control group namespace"))?;
    external::confine_groups(&job.group)?;
    let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(system("share the output"));
    let init = runtime.create(duplicate(&job.stdout)?, duplicate(&job.stderr)?)?;
    Ok((Maker::Installed(runtime), init))
}

fn write_bundle(description: &OciSpec) -> Result<(), KeeperError> {
    let path = Path::new(TREE).join("bundle/config.json");
    description
        .save(&path)
        .map_err(|e| KeeperError::Oci(OciError::Build(e)))
}

fn namespace_of(pid: libc::pid_t) -> Result<OwnedFd, KeeperError> {
    let file = File::open(format!("/proc/{pid}/ns/net")).map_err(system("find the container's network"))?;
    Ok(file.into())
}

/// A workload's name as a host's: letters, digits and hyphens.
fn hostname(workload: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = workload.chars().map(plain).take(HOSTNAME_BYTES_MAX).collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        "container".into()
    } else {
        name.to_owned()
    }
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
