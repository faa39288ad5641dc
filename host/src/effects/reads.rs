//! A tenant's reads of keys share statements: those that come while one is on its way go together in the next.
//!
//! A statement begins after the last of its readers has come, so that each sees all that was committed before it
//! asked. Since a tenant has one on its way at a time, so long as they are quick, the busiest leaves the store's other
//! connections to others; ranges are read beside them. A reader that goes away takes nothing from the rest: whoever still waits drives the statement.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

use crate::effects::row::{Key, Row};
use crate::effects::set::Tag;
use crate::kernel::error::Result;

/// Keys of a statement with several readers: a millisecond of the database's, so that nobody waits long for others'
/// rows.
const KEYS: usize = 128;
/// How long the next statement waits for the one before it: many times what one takes. What is slower is stuck, and
/// must not hold up a tenant.
const PATIENCE: Duration = Duration::from_millis(20);

/// Rows in the order of their keys, and the state that they belong to.
pub(super) type Answer = Result<(Tag, Vec<Option<Row>>)>;

/// One tenant's reads.
#[derive(Clone)]
pub(super) struct Reads(Arc<Inner>);

struct Inner {
    /// Held by the statement that is on its way.
    turn: Semaphore,
    /// Who goes together in the next one.
    next: Mutex<Option<Group>>,
}

/// Readers of one statement. It is theirs: without readers it is gone.
struct Group {
    keys: Arc<Mutex<Vec<Key>>>,
    answer: WeakShared<Statement>,
}

type Statement = BoxFuture<'static, Arc<Answer>>;

impl Default for Reads {
    fn default() -> Self {
        Self(Arc::new(Inner { turn: Semaphore::new(1), next: Mutex::default() }))
    }
}

impl Reads {
    /// Read the rows of these keys in a statement that begins from here on; `ask` sends it.
    pub(super) async fn read<F>(&self, keys: &[Key], ask: impl FnOnce(Vec<Key>) -> F + Send + 'static) -> Answer
    where
        F: Future<Output = Answer> + Send,
    {
        let (from, answer) = self.join(keys, ask);
        match &*answer.await {
            Ok((tag, rows)) => Ok((*tag, rows[from..from + keys.len()].to_vec())),
            Err(error) => Err(error.clone()),
        }
    }

    /// Join the readers that wait, as the first if there are none; where one's rows begin in the answer.
    fn join<F>(&self, keys: &[Key], ask: impl FnOnce(Vec<Key>) -> F + Send + 'static) -> (usize, Shared<Statement>)
    where
        F: Future<Output = Answer> + Send,
    {
        let mut next = lock(&self.0.next);
        if let Some(group) = &*next
            && let Some(answer) = group.answer.upgrade()
        {
            let mut all = lock(&group.keys);
            if all.len() + keys.len() <= KEYS {
                let from = all.len();
                all.extend_from_slice(keys);
                return (from, answer);
            }
        }
        let keys = Arc::new(Mutex::new(keys.to_vec()));
        let (inner, own) = (self.0.clone(), keys.clone());
        let answer = async move {
            let _turn = tokio::time::timeout(PATIENCE, inner.turn.acquire()).await;
            let keys = {
                let mut next = lock(&inner.next);
                if next.as_ref().is_some_and(|group| Arc::ptr_eq(&group.keys, &own)) {
                    *next = None;
                }
                std::mem::take(&mut *lock(&own))
            };
            Arc::new(ask(keys).await)
        };
        let answer = answer.boxed().shared();
        *next = answer.downgrade().map(|answer| Group { keys, answer });
        (0, answer)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use futures_util::poll;
    use tokio::sync::mpsc;

    use super::*;
    use crate::effects::row::{Space, Value};
    use crate::kernel::error::Error;

    type Sent = mpsc::UnboundedReceiver<(Vec<Key>, tokio::sync::oneshot::Sender<Answer>)>;

    fn keys(names: &[&'static str]) -> Vec<Key> {
        names.iter().map(|name| Space::named("kv/c").key(*name)).collect()
    }

    /// A reader, and the statements that readers send: each waits to be answered.
    fn tenant() -> (impl Fn(Vec<Key>) -> BoxFuture<'static, Answer>, Sent) {
        let (reads, (sender, sent)) = (Reads::default(), mpsc::unbounded_channel());
        let read = move |keys: Vec<Key>| {
            let (reads, sender) = (reads.clone(), sender.clone());
            let ask = async move |keys| {
                let (answer, answered) = tokio::sync::oneshot::channel();
                sender.send((keys, answer)).unwrap();
                answered.await.unwrap()
            };
            async move { reads.read(&keys, ask).await }.boxed()
        };
        (read, sent)
    }

    async fn sent_after(sent: &mut Sent, reader: &mut BoxFuture<'static, Answer>) -> (Vec<Key>, Duration) {
        let asked = tokio::time::Instant::now();
        tokio::select! {
            _ = reader => panic!("nobody answered"),
            statement = sent.recv() => (statement.unwrap().0, asked.elapsed()),
        }
    }

    /// Each key's own name as its row.
    fn rows(keys: &[Key]) -> Answer {
        let row = |key: &Key| Some(Row { value: Value::Bytes(key.key.clone()), version: 1, expires_at_ms: None });
        Ok((Tag { epoch: 1, seq: 1 }, keys.iter().map(row).collect()))
    }

    #[tokio::test]
    async fn readers_that_come_while_a_statement_is_on_its_way_share_the_next() {
        let (read, mut sent) = tenant();
        let names: [&[&str]; 4] = [&["a"], &["b", "c"], &["d"], &["c"]];
        let mut readers = names.map(|names| read(keys(names)));
        for reader in &mut readers {
            assert!(poll!(reader).is_pending());
        }
        let (first, answer) = sent.try_recv().unwrap();
        assert_eq!(first, keys(&["a"]));
        assert!(sent.try_recv().is_err(), "one at a time");
        answer.send(rows(&first)).unwrap();
        let [a, bc, d, c] = readers;
        assert_eq!(a.await.unwrap().1, rows(&first).unwrap().1);
        let answer = async {
            let (next, answer) = sent.recv().await.unwrap();
            assert_eq!(next, keys(&["b", "c", "d", "c"]));
            answer.send(rows(&next)).unwrap();
        };
        let (bc, d, c, ()) = tokio::join!(bc, d, c, answer);
        for (answer, names) in [(bc, names[1]), (d, names[2]), (c, names[3])] {
            assert_eq!(answer.unwrap().1, rows(&keys(names)).unwrap().1);
        }
        assert!(sent.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_takes_nothing_from_the_others() {
        let (read, mut sent) = tenant();
        let mut first = read(keys(&["a"]));
        let (mut second, mut third) = (read(keys(&["b"])), read(keys(&["c"])));
        for reader in [&mut first, &mut second, &mut third] {
            assert!(poll!(reader).is_pending());
        }
        // Whose statement was on its way, and who was the first to wait for the next.
        drop((first, second));
        let mut third = pin!(third);
        assert!(poll!(&mut third).is_pending());
        let (gone, _) = sent.try_recv().unwrap();
        assert_eq!(gone, keys(&["a"]));
        let (next, answer) = sent.try_recv().unwrap();
        answer.send(rows(&next)).unwrap();
        let Poll::Ready(Ok((_, found))) = poll!(third) else { panic!("it has its answer") };
        assert_eq!(found, rows(&keys(&["c"])).unwrap().1);
        // When all have gone, nothing is left of them.
        let (mut fourth, mut fifth) = (read(keys(&["d"])), read(keys(&["e"])));
        assert!(poll!(&mut fourth).is_pending() && poll!(&mut fifth).is_pending());
        drop((fourth, fifth));
        let mut sixth = read(keys(&["f"]));
        assert!(poll!(&mut sixth).is_pending());
        let (of_fourth, of_sixth) = (sent.try_recv().unwrap(), sent.try_recv().unwrap());
        assert_eq!((of_fourth.0, of_sixth.0), (keys(&["d"]), keys(&["f"])));
    }

    #[tokio::test]
    async fn a_statement_that_is_stuck_holds_nobody_up_for_long() {
        let (read, mut sent) = tenant();
        let mut stuck = read(keys(&["a"]));
        assert!(poll!(&mut stuck).is_pending());
        let (_, _never_answered) = sent.try_recv().unwrap();
        let (next, waited) = sent_after(&mut sent, &mut read(keys(&["b"]))).await;
        assert_eq!(next, keys(&["b"]));
        assert!(waited >= PATIENCE, "{waited:?}");
    }

    #[tokio::test]
    async fn an_error_is_every_readers_and_a_full_statement_is_followed_by_another() {
        let (read, mut sent) = tenant();
        let many = vec![keys(&["x"])[0].clone(); KEYS];
        let mut readers = [keys(&["a"]), many.clone(), keys(&["b"]), keys(&["c"])].map(read);
        for reader in &mut readers {
            assert!(poll!(reader).is_pending());
        }
        let answer = async {
            for expected in [keys(&["a"]), many, keys(&["b", "c"])] {
                let (next, answer) = sent.recv().await.unwrap();
                assert_eq!(next, expected);
                answer.send(Err(Error::unavailable("database_unavailable", "gone"))).unwrap();
            }
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(readers), answer);
        assert_eq!(answers.len(), 4);
        for answer in answers {
            assert_eq!(answer.unwrap_err().code(), "database_unavailable");
        }
    }
}
