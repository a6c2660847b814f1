//! Work that may take long, in a thread that gets what processor time nothing else wants.

use std::io;

use rustix::process::setpriority_process;
use tokio::sync::oneshot;

/// The lowest priority that Linux has (`setpriority(2)`).
const LOWEST: i32 = 19;

/// Does the work in a thread of its own, at the lowest priority; a thread cannot get its priority back, so it ends with the work.
///
/// # Errors
/// The thread cannot be started, or the work panicked.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (send, receive) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // On Linux it is this thread's alone. Without it the work is only less polite.
        let _ = setpriority_process(None, LOWEST);
        // Nobody waits any more: then nobody needs the result.
        let _ = send.send(work());
    })?;
    receive
        .await
        .map_err(|_| io::Error::other(format!("the thread {name:?} ended before its work")))
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn work_runs_at_the_lowest_priority_and_the_caller_keeps_its_own() {
        let before = getpriority_process(None).unwrap();
        let inside = run("test", || getpriority_process(None).unwrap()).await.unwrap();
        assert_eq!(inside, LOWEST);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let failed: io::Result<()> = run("test", || panic!("a test panics")).await;
        assert!(failed.unwrap_err().to_string().contains("ended before"));
    }
}
