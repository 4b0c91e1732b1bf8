//! Work that is done again and again while a process runs.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Calls `work` every `pause`, for the first time at once, until `stop` is cancelled.
///
/// A call is never interrupted. If one takes longer than `pause`, the next one follows after a
/// whole `pause`, so that a slow database is not asked without a break.
pub(crate) async fn every<F: Future<Output = ()>>(
    pause: Duration,
    stop: &CancellationToken,
    mut work: impl FnMut() -> F,
) {
    repeat(stop, || {
        let (begun, work) = (Instant::now(), work());
        async move {
            work.await;
            pause.checked_sub(begun.elapsed()).unwrap_or(pause)
        }
    })
    .await;
}

/// Calls `work` again and again until `stop` is cancelled, each time after the pause that the call
/// before returned. A call is never interrupted.
pub(crate) async fn repeat<F: Future<Output = Duration>>(
    stop: &CancellationToken,
    mut work: impl FnMut() -> F,
) {
    while !stop.is_cancelled() {
        let pause = work().await;
        stop.run_until_cancelled(sleep(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The times, in seconds, at which `every` begins a call of `work` within 29 seconds.
    async fn begun(pause: u64, work: u64) -> Vec<u64> {
        let (start, times) = (Instant::now(), RefCell::new(Vec::new()));
        let stop = CancellationToken::new();
        let calls = every(Duration::from_secs(pause), &stop, || async {
            times.borrow_mut().push(start.elapsed().as_secs());
            sleep(Duration::from_secs(work)).await;
        });
        let stopping = async {
            sleep(Duration::from_secs(29)).await;
            stop.cancel();
        };
        tokio::join!(calls, stopping);
        times.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_begin_every_pause() {
        assert_eq!(begun(10, 3).await, [0, 10, 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_call_is_followed_by_a_whole_pause() {
        assert_eq!(begun(5, 8).await, [0, 13, 26]);
    }

    #[tokio::test(start_paused = true)]
    async fn call_is_finished_after_the_stop() {
        let (stop, ended) = (CancellationToken::new(), RefCell::new(0));
        let calls = every(Duration::from_secs(1), &stop, || async {
            stop.cancel();
            sleep(Duration::from_secs(1)).await;
            *ended.borrow_mut() += 1;
        });

        calls.await;

        assert_eq!(ended.into_inner(), 1);
    }
}
