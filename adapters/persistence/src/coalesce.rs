use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    task,
    time::timeout,
};

/// Requests of many callers, served together: one statement and one commit for all that wait.
///
/// While a batch is being served, new requests gather for the next one. Another batch begins beside it
/// only if it is large, or after [`GATHER`]: two small batches would cost more than one. A request to a
/// full queue is refused at once.
///
/// A request whose caller left before its batch began is not served. Once it has begun, it is
/// served for the other callers in the batch, too.
pub(crate) struct Coalescer<B: Batch>(Arc<Shared<B>>);

/// Requests that can be served together.
pub(crate) trait Batch: Sized + Send + Sync + 'static {
    type Request: Send + 'static;
    type Answer: Send + 'static;
    type Error: From<Unserved> + Send + 'static;

    /// Whether one batch may have both requests.
    fn go_together(_one: &Self::Request, _other: &Self::Request) -> bool {
        true
    }

    /// How much a request counts against [`Limits::batch`].
    fn size(_request: &Self::Request) -> usize {
        1
    }

    /// Serves a batch: answers each request, or puts it back into `queue`.
    fn serve(
        &self,
        jobs: Vec<Job<Self>>,
        queue: &Coalescer<Self>,
    ) -> impl Future<Output = ()> + Send;
}

/// The reason why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
    #[error("the queue is full")]
    QueueFull,
    #[error("the batch stopped before it was done")]
    Stopped,
    #[error("not done in time")]
    TooLate,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests that may wait.
    pub(crate) queue: usize,
    /// Batches at a time.
    pub(crate) batches: usize,
    /// The size of a batch. A request that alone is larger is a batch of its own.
    pub(crate) batch: usize,
    /// The size from which a batch begins at once beside another one. 0: every batch does.
    pub(crate) beside: usize,
    /// How long a caller waits for its answer. `None`: until it is served.
    pub(crate) patience: Option<Duration>,
}

struct Shared<B: Batch> {
    batch: B,
    limits: Limits,
    waiting: Mutex<Waiting<B>>,
    /// Notified when the requests that wait are a large batch.
    large: Notify,
}

struct Waiting<B: Batch> {
    jobs: VecDeque<Job<B>>,
    /// Tasks that serve batches.
    running: usize,
    /// Batches that are being served.
    served: usize,
}

/// How long a small batch waits for another one to end. Most statements take less. If one waits for a
/// lock, the callers of other batches wait this much longer.
const GATHER: Duration = Duration::from_millis(20);

/// A request and its caller.
pub(crate) struct Job<B: Batch> {
    pub(crate) request: B::Request,
    /// It must be served without others: the database refused a batch that it was in.
    alone: bool,
    answer: oneshot::Sender<Result<B::Answer, B::Error>>,
}

impl<B: Batch> Coalescer<B> {
    pub(crate) fn new(batch: B, limits: Limits) -> Self {
        let waiting = Mutex::new(Waiting { jobs: VecDeque::new(), running: 0, served: 0 });
        Self(Arc::new(Shared { batch, limits, waiting, large: Notify::new() }))
    }

    /// Puts a request into the queue, and waits for its answer.
    pub(crate) async fn ask(&self, request: B::Request) -> Result<B::Answer, B::Error> {
        let (answer, answered) = oneshot::channel();
        let job = Job { request, alone: false, answer };
        self.try_put(job).map_err(|_| Unserved::QueueFull)?;
        let patience = self.0.limits.patience.unwrap_or(Duration::MAX);
        match timeout(patience, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Unserved::Stopped.into()),
            Err(_) => Err(Unserved::TooLate.into()),
        }
    }

    /// Puts a job into the queue, or returns it if the queue is full.
    pub(crate) fn try_put(&self, job: Job<B>) -> Result<(), Job<B>> {
        let mut waiting = self.waiting();
        if waiting.jobs.len() >= self.0.limits.queue {
            return Err(job);
        }
        self.add(&mut waiting, job);
        Ok(())
    }

    /// Puts a job that is still to be served into the queue, even if the queue is full.
    pub(crate) fn put_back(&self, job: Job<B>) {
        self.add(&mut self.waiting(), job);
    }

    /// Puts a job into the queue that is to be served without others.
    pub(crate) fn put_back_alone(&self, job: Job<B>) {
        self.put_back(Job { alone: true, ..job });
    }

    /// Takes all jobs out of the queue.
    pub(crate) fn take_all(&self) -> impl Iterator<Item = Job<B>> {
        mem::take(&mut self.waiting().jobs).into_iter()
    }

    /// Whether a caller waits for a batch.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting().jobs.iter().any(|job| !job.has_left())
    }

    fn add(&self, waiting: &mut Waiting<B>, job: Job<B>) {
        if waiting.add(job, self.0.limits.batches) {
            tokio::spawn(self.clone().run());
        }
        let beside = self.0.limits.beside;
        if beside > 0 && waiting.size() >= beside {
            self.0.large.notify_waiters();
        }
    }

    /// Serves batches until no job waits.
    async fn run(self) {
        loop {
            // Callers that are ready to run usually ask before the batch begins.
            task::yield_now().await;
            let large = self.0.large.notified();
            if self.waiting().is_small_beside_another(self.0.limits.beside) {
                let _ = timeout(GATHER, large).await;
            }
            let Some(jobs) = self.waiting().next(self.0.limits.batch) else { return };
            let queue = self.clone();
            // In a task of its own: a panic ends only this batch.
            let _ = tokio::spawn(async move { queue.0.batch.serve(jobs, &queue).await }).await;
            self.waiting().served -= 1;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<B>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Batch> fmt::Debug for Coalescer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalescer").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl<B: Batch> Clone for Coalescer<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Batch> Waiting<B> {
    /// Adds a job, and returns whether one more task is to serve.
    fn add(&mut self, job: Job<B>, batches: usize) -> bool {
        self.jobs.push_back(job);
        let has_room = self.running < batches;
        self.running += usize::from(has_room);
        has_room
    }

    /// Whether requests wait that are smaller than this, while another batch is being served.
    fn is_small_beside_another(&self, size: usize) -> bool {
        self.served > 0 && !self.jobs.is_empty() && self.size() < size
    }

    fn size(&self) -> usize {
        self.jobs.iter().map(|job| B::size(&job.request)).sum()
    }

    /// Returns the next batch. If there is none, the task that asks must end.
    fn next(&mut self, batch: usize) -> Option<Vec<Job<B>>> {
        self.jobs.retain(|job| !job.has_left());
        let Some(first) = self.jobs.front() else {
            self.running -= 1;
            return None;
        };
        let mut room = batch.saturating_sub(B::size(&first.request));
        let joins = |job: &&Job<B>| {
            let size = B::size(&job.request);
            let joins = !first.alone
                && !job.alone
                && size <= room
                && B::go_together(&job.request, &first.request);
            room = room.saturating_sub(size);
            joins
        };
        let others = self.jobs.iter().skip(1).take_while(joins).count();
        self.served += 1;
        Some(self.jobs.drain(..=others).collect())
    }
}

impl<B: Batch> Job<B> {
    pub(crate) fn answer(self, answer: Result<B::Answer, B::Error>) {
        // The caller may have left.
        let _ = self.answer.send(answer);
    }

    /// Whether the caller no longer waits for the answer.
    pub(crate) fn has_left(&self) -> bool {
        self.answer.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_n;

    use tokio::{
        sync::{
            Semaphore,
            mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        },
        time::{Instant, sleep},
    };

    use super::*;

    const BATCH: usize = 32;
    const BATCHES: usize = 4;

    /// Serves nothing. A request is its number and its kind.
    #[derive(Debug)]
    struct Idle;

    impl From<Unserved> for () {
        fn from(_: Unserved) {}
    }

    impl Batch for Idle {
        type Request = (usize, char);
        type Answer = ();
        type Error = ();

        fn go_together(one: &Self::Request, other: &Self::Request) -> bool {
            one.1 == other.1
        }

        fn size((_, kind): &Self::Request) -> usize {
            match kind {
                'm' => BATCH / 2,
                'l' => BATCH + 1,
                _ => 1,
            }
        }

        async fn serve(&self, _: Vec<Job<Self>>, _: &Coalescer<Self>) {}
    }

    type Answer = oneshot::Receiver<Result<(), ()>>;

    /// Requests of these kinds, numbered from 0 on, and their callers.
    fn waiting(kinds: impl IntoIterator<Item = char>) -> (Waiting<Idle>, Vec<Answer>) {
        let mut waiting = Waiting { jobs: VecDeque::new(), running: 0, served: 0 };
        let answers = (0..).zip(kinds).map(|request| {
            let (answer, answered) = oneshot::channel();
            waiting.add(Job { request, alone: false, answer }, BATCHES);
            answered
        });
        let answers = answers.collect();
        (waiting, answers)
    }

    fn next(waiting: &mut Waiting<Idle>) -> Option<Vec<usize>> {
        Some(waiting.next(BATCH)?.into_iter().map(|job| job.request.0).collect())
    }

    #[test]
    fn batch_holds_at_most_32_requests_of_one_kind() {
        let kinds = ['a', 'a', 'b'].into_iter().chain(repeat_n('a', BATCH + 1));
        let (mut waiting, _answers) = waiting(kinds);

        assert_eq!(next(&mut waiting).unwrap(), [0, 1]);
        assert_eq!(next(&mut waiting).unwrap(), [2]);
        assert_eq!(next(&mut waiting).unwrap().len(), BATCH);
        assert_eq!(next(&mut waiting).unwrap().len(), 1);
        assert_eq!(next(&mut waiting), None);
    }

    #[test]
    fn sizes_of_the_requests_fill_a_batch() {
        let (mut waiting, _answers) = waiting(['m', 'm', 'm', 'l', 'l']);

        let batches = std::iter::from_fn(|| next(&mut waiting)).collect::<Vec<_>>();
        assert_eq!(batches, [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn request_of_a_caller_that_left_is_not_served() {
        let (mut waiting, mut answers) = waiting(['a'; 3]);
        answers.remove(1);

        assert_eq!(next(&mut waiting).unwrap(), [0, 2]);
    }

    #[test]
    fn request_of_a_refused_batch_is_served_alone() {
        let (mut waiting, _answers) = waiting(['a'; 5]);
        for job in waiting.jobs.range_mut(1..3) {
            job.alone = true;
        }

        let batches = std::iter::from_fn(|| next(&mut waiting)).take(4).collect::<Vec<_>>();
        assert_eq!(batches, [vec![0], vec![1], vec![2], vec![3, 4]]);
    }

    /// Reports the size of each batch, and ends it when the test allows it.
    #[derive(Debug)]
    struct Slow {
        sizes: UnboundedSender<usize>,
        ends: Semaphore,
    }

    impl Batch for Slow {
        type Request = ();
        type Answer = ();
        type Error = ();

        async fn serve(&self, jobs: Vec<Job<Self>>, _: &Coalescer<Self>) {
            self.sizes.send(jobs.len()).expect("the test reads the sizes");
            self.ends.acquire().await.expect("the semaphore is never closed").forget();
            for job in jobs {
                job.answer(Ok(()));
            }
        }
    }

    /// A batch of 16 is large.
    fn slow() -> (Coalescer<Slow>, UnboundedReceiver<usize>) {
        let (sizes, received) = unbounded_channel();
        let limits = Limits { queue: 100, batches: 2, batch: 32, beside: 16, patience: None };
        (Coalescer::new(Slow { sizes, ends: Semaphore::new(0) }, limits), received)
    }

    fn ask(coalescer: &Coalescer<Slow>, requests: usize) {
        for _ in 0..requests {
            let coalescer = coalescer.clone();
            tokio::spawn(async move { coalescer.ask(()).await });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_batch_waits_for_another_one_but_not_for_long() {
        let (coalescer, mut sizes) = slow();
        ask(&coalescer, 1);
        assert_eq!(sizes.recv().await, Some(1));

        let begun = Instant::now();
        ask(&coalescer, 2);
        sleep(GATHER / 4).await;
        ask(&coalescer, 3);
        sleep(GATHER / 4).await;
        coalescer.0.batch.ends.add_permits(1);
        assert_eq!(sizes.recv().await, Some(5), "one batch for all that came meanwhile");
        assert_eq!(begun.elapsed(), GATHER / 2);

        // The second batch does not end.
        ask(&coalescer, 1);
        assert_eq!(sizes.recv().await, Some(1));
        assert!(begun.elapsed() <= 2 * GATHER, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn large_batch_begins_at_once_beside_another_one() {
        let (coalescer, mut sizes) = slow();
        ask(&coalescer, 1);
        assert_eq!(sizes.recv().await, Some(1));

        let begun = Instant::now();
        ask(&coalescer, 1);
        sleep(GATHER / 4).await;
        ask(&coalescer, 15);
        assert_eq!(sizes.recv().await, Some(16));
        assert_eq!(begun.elapsed(), GATHER / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn task_without_requests_ends_at_once_beside_another_batch() {
        let (coalescer, mut sizes) = slow();
        for size in [1, 16] {
            ask(&coalescer, size);
            assert_eq!(sizes.recv().await, Some(size));
        }

        coalescer.0.batch.ends.add_permits(1);
        sleep(GATHER / 4).await;

        assert_eq!(coalescer.waiting().running, 1);
    }

    #[test]
    fn no_more_tasks_serve_than_the_limit() {
        let (mut waiting, _answers) = waiting(['a'; BATCHES + 1]);
        assert_eq!(waiting.running, BATCHES);

        assert_eq!(next(&mut waiting).unwrap().len(), BATCHES + 1);
        assert_eq!(waiting.running, BATCHES, "its task still serves");
        assert_eq!(next(&mut waiting), None);
        assert_eq!(waiting.running, BATCHES - 1);
    }
}
