use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rand_core::Rng;
use tokio::{sync::mpsc, time::Instant};

use super::{Sampler, TraceParent};
use crate::Clock;

/// Records spans, or does nothing if it is off.
///
/// A span is put into a bounded queue when it ends. If the queue is full, it is dropped and counted:
/// nothing waits for the export.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

/// The other end of the queue.
#[derive(Debug)]
pub struct Spans {
    queue: mpsc::Receiver<Span>,
    recorder: Arc<Recorder>,
}

struct Recorder {
    sampler: Sampler,
    clock: Clock,
    rng: Mutex<Box<dyn Rng + Send>>,
    queue: mpsc::Sender<Span>,
    dropped: AtomicU64,
}

/// An operation that ended. It holds no code, no phone number and no secret.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub name: String,
    pub kind: SpanKind,
    pub context: TraceParent,
    /// The span of the same trace that caused this one.
    pub parent: Option<TraceParent>,
    /// A span of another trace that belongs to this one.
    pub link: Option<TraceParent>,
    pub start: SystemTime,
    pub end: SystemTime,
    /// The names are those of the semantic conventions of OpenTelemetry, or begin with `messager.`.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// The kind of failure, in one word. `None` if nothing failed.
    pub error: Option<Cow<'static, str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    Text(Cow<'static, str>),
    Number(i64),
}

/// A span that has not ended. It ends when it is dropped.
pub struct OpenSpan {
    /// `None` after [`discard`](Self::discard).
    span: Option<Span>,
    begun: Instant,
    took: Option<Duration>,
    recorder: Arc<Recorder>,
}

impl Tracer {
    /// Returns a tracer, and its queue for `capacity` spans.
    pub fn start(
        sampler: Sampler,
        clock: Clock,
        rng: impl Rng + Send + 'static,
        capacity: usize,
    ) -> (Self, Spans) {
        let (sender, queue) = mpsc::channel(capacity);
        let recorder = Arc::new(Recorder {
            sampler,
            clock,
            rng: Mutex::new(Box::new(rng)),
            queue: sender,
            dropped: AtomicU64::new(0),
        });
        (Self(Some(Arc::clone(&recorder))), Spans { queue, recorder })
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether spans of a trace are recorded.
    pub fn samples(&self, parent: &TraceParent) -> bool {
        self.0.as_ref().is_some_and(|it| it.sampler.samples(parent))
    }

    /// Begins a span of a trace, unless the trace is not recorded.
    pub fn begin(
        &self,
        parent: &TraceParent,
        kind: SpanKind,
        name: impl fmt::Display,
    ) -> Option<OpenSpan> {
        let recorder = self.0.as_ref().filter(|it| it.sampler.samples(parent))?;
        let context = parent.child(recorder.draw());
        Some(recorder.open(context, Some(parent.clone()), kind, name.to_string()))
    }

    /// Begins a span of the trace of a caller, or of a new trace if the caller has none. Also
    /// returns the trace to pass on. If tracing is off, that is the trace of the caller.
    pub fn enter(
        &self,
        caller: Option<TraceParent>,
        kind: SpanKind,
        name: impl fmt::Display,
    ) -> (Option<TraceParent>, Option<OpenSpan>) {
        let Some(recorder) = &self.0 else { return (caller, None) };
        let span = match &caller {
            Some(caller) => self.begin(caller, kind, name),
            None => recorder.new_trace().map(|it| recorder.open(it, None, kind, name.to_string())),
        };
        let trace = match &span {
            Some(span) => Some(span.context().clone()),
            None => caller.map(|it| it.unsampled()),
        };
        (trace, span)
    }
}

impl Recorder {
    /// Draws the id of a span, which is never 0.
    fn draw(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64() | 1
    }

    fn new_trace(&self) -> Option<TraceParent> {
        let trace = u128::from(self.draw()) << 64 | u128::from(self.draw());
        self.sampler.samples_new(trace).then(|| TraceParent::of(trace, self.draw(), super::SAMPLED))
    }

    fn open(
        self: &Arc<Self>,
        context: TraceParent,
        parent: Option<TraceParent>,
        kind: SpanKind,
        name: String,
    ) -> OpenSpan {
        let now = (self.clock)();
        let span = Span {
            name,
            kind,
            context,
            parent,
            link: None,
            start: now,
            end: now,
            attributes: Vec::new(),
            error: None,
        };
        OpenSpan { span: Some(span), begun: Instant::now(), took: None, recorder: Arc::clone(self) }
    }
}

impl OpenSpan {
    /// The context to pass to what this span causes.
    pub fn context(&self) -> &TraceParent {
        &self.span.as_ref().expect("only `discard` and `drop` take the span").context
    }

    pub fn set(&mut self, name: &'static str, value: impl Into<Attribute>) {
        if let Some(span) = &mut self.span {
            span.attributes.push((name, value.into()));
        }
    }

    pub fn link(&mut self, other: TraceParent) {
        if let Some(span) = &mut self.span {
            span.link = Some(other);
        }
    }

    /// Marks the span as failed. `error` is a word of low cardinality.
    pub fn fail(&mut self, error: impl Into<Cow<'static, str>>) {
        let error = error.into();
        self.set("error.type", error.clone());
        if let Some(span) = &mut self.span {
            span.error = Some(error);
        }
    }

    /// Sets the start to an earlier time, from which the operation is known to have begun.
    #[must_use]
    pub fn since(mut self, begun: Instant) -> Self {
        let earlier = self.begun.saturating_duration_since(begun);
        if let Some(span) = &mut self.span {
            span.start = span.start.checked_sub(earlier).unwrap_or(span.start);
        }
        self.begun = begun.min(self.begun);
        self
    }

    /// Sets the duration, if the operation ended before the span is dropped.
    pub fn took(&mut self, took: Duration) {
        self.took = Some(took);
    }

    /// Drops the span without recording it.
    pub fn discard(mut self) {
        self.span = None;
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let Some(mut span) = self.span.take() else { return };
        span.end = span.start + self.took.unwrap_or_else(|| self.begun.elapsed());
        if self.recorder.queue.try_send(span).is_err() {
            self.recorder.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Spans {
    /// Waits for spans, and moves up to `limit` of them to `batch`.
    pub async fn recv_many(&mut self, batch: &mut Vec<Span>, limit: usize) -> usize {
        self.queue.recv_many(batch, limit).await
    }

    /// Moves up to `limit` spans to `batch` that are there now.
    pub fn take(&mut self, batch: &mut Vec<Span>, limit: usize) {
        while batch.len() < limit
            && let Ok(span) = self.queue.try_recv()
        {
            batch.push(span);
        }
    }

    /// The number of spans in the queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The number of spans that were dropped since the last call, because the queue was full.
    pub fn take_dropped(&self) -> u64 {
        self.recorder.dropped.swap(0, Ordering::Relaxed)
    }
}

impl From<&'static str> for Attribute {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Cow<'static, str>> for Attribute {
    fn from(text: Cow<'static, str>) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Attribute {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Attribute {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Attribute {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl fmt::Debug for OpenSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenSpan").field(&self.span).finish()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("sampler", &self.sampler).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
