//! Programs: found in PATH, run without a shell and with a time limit.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::kernel::log;
use crate::kernel::retry::retry_on_eintr;
use crate::kernel::signals::{self, Terminated};

/// The default capacity of a pipe, in bytes (pipe(7), "Pipe capacity").
const PIPE_CAPACITY: usize = 64 << 10;

/// The longest stdout, in bytes: that of iptables-save with 200,000 rules is shorter.
const MAX_STDOUT: usize = 32 << 20;

/// The part of stderr that is kept, in bytes; the rest is discarded.
const MAX_STDERR: usize = 1 << 20;

/// Directories searched after PATH: some runtimes start plugins with another PATH or none.
const SYSTEM_DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/sbin",
    "/usr/bin",
    "/bin",
    "/usr/local/sbin",
    "/usr/local/bin",
];

/// The executable of this process, also after it was replaced by another file (proc_pid_exe(5)).
pub const OWN: &str = "/proc/self/exe";

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot run {program}: {cause}")]
    NotStarted { program: PathBuf, cause: io::Error },
    /// Reading or writing a pipe failed.
    #[error("lost the connection to {program}: {cause}")]
    Broken {
        /// Its path.
        program: PathBuf,
        /// What the kernel says.
        cause: io::Error,
    },
    #[error("{program} printed more than {MAX_STDOUT} bytes and was killed")]
    TooMuch {
        /// Its path.
        program: PathBuf,
    },
    #[error("{program} did not end within {} s and was killed", limit.as_secs())]
    TimedOut {
        /// Its path.
        program: PathBuf,
        limit: Duration,
    },
    /// This process received SIGTERM and killed the program.
    #[error("{stopped} while {program} ran, which was killed")]
    Terminated {
        /// Its path.
        program: PathBuf,
        stopped: Terminated,
    },
}

/// The result of a program that ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The first MiB of stderr.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Writes the program's stderr to that of this process, where a runtime expects the messages of a delegate.
    pub fn relay_stderr(&self) {
        // A closed stderr is not an error.
        let _ = io::stderr().write_all(&self.stderr);
    }

    /// stderr, or if it is empty the exit status, in one line.
    pub fn stderr_summary(&self) -> String {
        let stderr = String::from_utf8_lossy(&self.stderr);
        let summary = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        if summary.is_empty() {
            self.status.to_string()
        } else {
            summary
        }
    }
}

/// Finds a program in PATH, as the Go plugins do, because distributions that bundle programs set PATH; then in the
/// system directories. A file that is not executable is returned only if there is no other, for the error message.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let absolute = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let directories = absolute.chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from));
    let files = directories.map(|directory| directory.join(name));
    let files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
    let executable = files.iter().find(|file| is_executable(file));
    executable.or(files.first()).cloned()
}

pub fn is_executable(path: &Path) -> bool {
    let metadata = path.metadata();
    metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// Makes programs started from now on inherit an open file, and so keep the lock on it.
///
/// # Errors
/// Those of fcntl(2).
pub fn inherit_fd(file: &File) -> io::Result<()> {
    retry_on_eintr(|| Ok(fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?)).map(drop)
}

/// A program that runs concurrently.
/// It continues to run if this is dropped: what it was started for is one transaction.
#[derive(Debug)]
pub struct Running {
    program: PathBuf,
    child: Child,
    input: Option<Input>,
    deadline: Instant,
    limit: Duration,
}

/// Input that did not fit into the pipe. It is written as the program reads it, without a thread, because creating a
/// thread can fail (EAGAIN).
#[derive(Debug)]
struct Input {
    pipe: ChildStdin,
    rest: Vec<u8>,
}

/// Starts a program with these additional environment variables and this stdin.
///
/// # Errors
/// If it cannot be started or its input cannot be written.
fn start(
    program: &Path,
    args: &[&str],
    env: &[(&str, &str)],
    stdin: &[u8],
    limit: Duration,
) -> Result<Running, ProcessError> {
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(log::traceparent().map(|it| (log::TRACEPARENT, it)))
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut spawn = || {
        signals::keep_exit_statuses()?;
        retry_on_eintr(|| command.spawn())
    };
    let mut child = spawn().map_err(|cause| ProcessError::NotStarted {
        program: program.to_owned(),
        cause,
    })?;
    let pipe = child.stdin.take().expect("stdin was asked to be a pipe");
    match Input::begin(pipe, stdin) {
        Ok(input) => Ok(Running {
            program: program.to_owned(),
            child,
            input,
            deadline: Instant::now() + limit,
            limit,
        }),
        Err(cause) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(ProcessError::Broken {
                program: program.to_owned(),
                cause,
            })
        }
    }
}

impl Input {
    /// Writes what fits into the pipe. Returns the rest, if any.
    fn begin(pipe: ChildStdin, input: &[u8]) -> io::Result<Option<Input>> {
        if input.len() >= PIPE_CAPACITY {
            // Limited to fs.pipe-max-size without CAP_SYS_RESOURCE; a smaller pipe works as well.
            let wanted = i32::try_from(input.len() + PIPE_CAPACITY).unwrap_or(i32::MAX);
            let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(wanted));
            fcntl(
                &pipe,
                FcntlArg::F_SETFL(OFlag::O_WRONLY | OFlag::O_NONBLOCK),
            )?;
        }
        let rest = input.to_vec();
        Input { pipe, rest }.write_more()
    }

    /// Writes what fits. Returns the rest, if any.
    fn write_more(mut self) -> io::Result<Option<Input>> {
        while !self.rest.is_empty() {
            match self.pipe.write(&self.rest) {
                Ok(written) => drop(self.rest.drain(..written)),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(Some(self)),
                // A program may end without reading its input; its exit status shows whether it failed.
                Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
                Err(cause) => return Err(cause),
            }
        }
        Ok(None)
    }
}

/// Runs a program and waits for it to end.
///
/// # Errors
/// If it cannot be started or does not end within `limit`.
pub fn run(
    program: &Path,
    args: &[&str],
    env: &[(&str, &str)],
    stdin: &[u8],
    limit: Duration,
) -> Result<Output, ProcessError> {
    start(program, args, env, stdin, limit)?.finish()
}

impl Running {
    /// Waits for the program to end.
    ///
    /// # Errors
    /// If it does not end in time; it is killed then.
    pub fn finish(mut self) -> Result<Output, ProcessError> {
        let mut stdout = self
            .child
            .stdout
            .take()
            .expect("stdout was asked to be a pipe");
        let mut stderr = self
            .child
            .stderr
            .take()
            .expect("stderr was asked to be a pipe");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            let fds = [
                out_open.then_some(stdout.as_fd()),
                err_open.then_some(stderr.as_fd()),
            ];
            let ready = match self.wait_ready(fds) {
                Ok(Waited::Ready(ready)) => ready,
                Ok(Waited::TimedOut) => {
                    self.kill();
                    return Err(ProcessError::TimedOut {
                        program: self.program,
                        limit: self.limit,
                    });
                }
                Ok(Waited::Terminated(stopped)) => {
                    self.kill();
                    return Err(ProcessError::Terminated {
                        program: self.program,
                        stopped,
                    });
                }
                Err(cause) => return Err(self.broken(cause)),
            };
            if ready[0] {
                out_open = read_some(&mut stdout, &mut out).map_err(|cause| self.broken(cause))?;
            }
            if out.len() > MAX_STDOUT {
                self.kill();
                return Err(ProcessError::TooMuch {
                    program: self.program,
                });
            }
            if ready[2]
                && let Some(input) = self.input.take()
            {
                self.input = input.write_more().map_err(|cause| self.broken(cause))?;
            }
            if ready[1] {
                err_open = read_some(&mut stderr, &mut err).map_err(|cause| self.broken(cause))?;
                err.truncate(MAX_STDERR);
            }
        }
        let status = self.child.wait().map_err(|cause| self.broken(cause))?;
        let began = log::step_start().and_then(|_| self.deadline.checked_sub(self.limit));
        log::step(began, || format!("{}: {status}", self.program.display()));
        Ok(Output {
            status,
            stdout: out,
            stderr: err,
        })
    }

    /// Waits until an output is readable or the input writable. A closed output must be `None`, because poll(2) would
    /// return at once (POLLHUP).
    fn wait_ready(&self, outputs: [Option<BorrowedFd>; 2]) -> io::Result<Waited> {
        let input = self.input.as_ref().map(|input| input.pipe.as_fd());
        let [out, err] = outputs.map(|fd| fd.map(|fd| (fd, PollFlags::POLLIN)));
        let input = input.map(|fd| (fd, PollFlags::POLLOUT));
        let wake = signals::wake().map(|wake| (wake, PollFlags::POLLIN));
        let all = [out, err, input, wake];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::TimedOut);
            }
            let wanted = all.into_iter().flatten();
            let mut polled: Vec<PollFd> = wanted.map(|(fd, on)| PollFd::new(fd, on)).collect();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut polled, timeout) {
                Err(Errno::EINTR) | Ok(0) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(_) => {}
            }
            let mut answers = polled.iter();
            let ready = [0, 1, 2].map(|position| {
                let answer = all[position].and_then(|_| answers.next());
                answer.and_then(PollFd::any).unwrap_or(false)
            });
            if ready.contains(&true) {
                return Ok(Waited::Ready(ready));
            }
            if let Err(stopped) = signals::check() {
                return Ok(Waited::Terminated(stopped));
            }
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn broken(&self, cause: io::Error) -> ProcessError {
        ProcessError::Broken {
            program: self.program.clone(),
            cause,
        }
    }
}

enum Waited {
    /// stdout and stderr are readable or closed; stdin is writable.
    Ready([bool; 3]),
    TimedOut,
    Terminated(Terminated),
}

/// Reads the available data; `false` at the end of the stream.
fn read_some(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) => return Ok(false),
            Ok(length) => {
                into.extend_from_slice(&buffer[..length]);
                return Ok(true);
            }
            Err(cause) => return Err(cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn input_is_written_and_both_outputs_are_read() {
        let sh = find("sh").unwrap();
        let script = "cat; echo $NAME >&2; exit 3";
        let big = vec![b'x'; 300_000];
        let output = run(&sh, &["-c", script], &[("NAME", "me")], &big, LIMIT).unwrap();
        assert_eq!(output.stdout, big);
        assert_eq!(output.stderr_summary(), "me");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let sleep = find("sleep").unwrap();
        let limit = Duration::from_millis(50);
        let error = run(&sleep, &["60"], &[], b"", limit).unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
    }

    #[test]
    fn a_program_that_prints_endlessly_is_killed_and_its_stderr_is_cut() {
        let sh = find("sh").unwrap();
        let error = run(&sh, &["-c", "cat /dev/zero"], &[], b"", LIMIT).unwrap_err();
        assert!(matches!(error, ProcessError::TooMuch { .. }), "{error}");
        let script = "head -c 3000000 /dev/zero >&2";
        let output = run(&sh, &["-c", script], &[], b"", LIMIT).unwrap();
        assert_eq!(output.stderr.len(), MAX_STDERR);
    }

    #[test]
    fn the_error_names_a_missing_program() {
        let error = run(Path::new("/nonexistent"), &[], &[], b"", LIMIT).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
