//! What a tenant asks of the database at the same time shares statements: requests that come while one is on its way go
//! together in the next.
//!
//! A statement begins after the last of its requests has come, so that each sees all that was committed before it
//! asked. Since a tenant has one on its way at a time, so long as they are quick, the busiest leaves the store's other
//! connections to others. Whoever goes away takes nothing from the rest: whoever still waits drives the statement.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

use crate::kernel::cache::Cache;
use crate::kernel::error::Result;
use crate::kernel::tenant::TenantId;

/// Items of a statement with several requests: a millisecond or two of the database's, so that nobody waits long for what
/// others asked.
const ITEMS: usize = 128;
/// How long the next statement waits for the one before it: many times what one takes. What is slower is stuck, and
/// must not hold up a tenant.
const PATIENCE: Duration = Duration::from_millis(20);
/// Tenants whose requests share statements; a forgotten one's that are on their way share with no later ones.
const TENANTS: usize = 4_096;

/// All tenants' requests of one kind. A statement is sent with the items of all of its requests, and what it answers is
/// everybody's.
pub(super) struct Together<I, A>(Cache<TenantId, Arc<Line<I, A>>>);

/// One tenant's.
struct Line<I, A> {
    /// Held by the statement that is on its way.
    turn: Semaphore,
    /// Who goes together in the next one.
    next: Mutex<Option<Group<I, A>>>,
}

/// Requests of one statement. It is theirs: without them it is gone.
struct Group<I, A> {
    items: Arc<Mutex<Vec<I>>>,
    answer: WeakShared<Statement<A>>,
}

type Statement<A> = BoxFuture<'static, Arc<Result<A>>>;

impl<I, A> Clone for Together<I, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I, A> Default for Together<I, A>
where
    I: Clone + Send + 'static,
    A: Send + Sync + 'static,
{
    fn default() -> Self {
        Self(Cache::new(TENANTS))
    }
}

impl<I, A> Together<I, A>
where
    I: Clone + Send + 'static,
    A: Send + Sync + 'static,
{
    /// Have these items in a statement that begins from here on; `send` sends it. `take` takes what is the caller's from
    /// the answer: its first item was the one with this number.
    pub(super) async fn ask<F, T>(
        &self,
        tenant: &TenantId,
        items: &[I],
        send: impl FnOnce(Vec<I>) -> F + Send + 'static,
        take: impl FnOnce(&A, usize) -> T,
    ) -> Result<T>
    where
        F: Future<Output = Result<A>> + Send,
    {
        let line = self.0.get_or_make(tenant, || Arc::new(Line { turn: Semaphore::new(1), next: Mutex::default() }));
        let (from, answer) = line.join(items, send);
        match &*answer.await {
            Ok(answer) => Ok(take(answer, from)),
            Err(error) => Err(error.clone()),
        }
    }
}

impl<I, A> Line<I, A>
where
    I: Clone + Send + 'static,
    A: Send + Sync + 'static,
{
    /// Join the requests that wait, as the first if there are none; which number the first item has.
    fn join<F>(
        self: Arc<Self>,
        items: &[I],
        send: impl FnOnce(Vec<I>) -> F + Send + 'static,
    ) -> (usize, Shared<Statement<A>>)
    where
        F: Future<Output = Result<A>> + Send,
    {
        let mut next = lock(&self.next);
        if let Some(group) = &*next
            && let Some(answer) = group.answer.upgrade()
        {
            let mut all = lock(&group.items);
            if all.len() + items.len() <= ITEMS {
                let from = all.len();
                all.extend_from_slice(items);
                return (from, answer);
            }
        }
        let items = Arc::new(Mutex::new(items.to_vec()));
        let (line, own) = (self.clone(), items.clone());
        let answer = async move {
            let _turn = tokio::time::timeout(PATIENCE, line.turn.acquire()).await;
            let items = {
                let mut next = lock(&line.next);
                if next.as_ref().is_some_and(|group| Arc::ptr_eq(&group.items, &own)) {
                    *next = None;
                }
                std::mem::take(&mut *lock(&own))
            };
            Arc::new(send(items).await)
        };
        let answer = answer.boxed().shared();
        *next = answer.downgrade().map(|answer| Group { items, answer });
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
    use crate::kernel::error::Error;

    type Items = Vec<&'static str>;
    type Sent = mpsc::UnboundedReceiver<(Items, tokio::sync::oneshot::Sender<Result<Items>>)>;

    /// Somebody who asks for items and is answered with the same, and the statements that are sent for it: each waits to
    /// be answered.
    fn tenant() -> (impl Fn(&[&'static str]) -> BoxFuture<'static, Result<Items>>, Sent) {
        let (together, (sender, sent)) = (Together::default(), mpsc::unbounded_channel());
        let tenant = TenantId::from_row("tenant");
        let asks = move |items: &[&'static str]| {
            let (together, tenant, sender, items) = (together.clone(), tenant.clone(), sender.clone(), items.to_vec());
            let send = async move |items| {
                let (answer, answered) = tokio::sync::oneshot::channel();
                sender.send((items, answer)).unwrap();
                answered.await.unwrap()
            };
            let count = items.len();
            let take = move |all: &Items, from: usize| all[from..from + count].to_vec();
            async move { together.ask(&tenant, &items, send, take).await }.boxed()
        };
        (asks, sent)
    }

    async fn sent_after(sent: &mut Sent, asks: &mut BoxFuture<'static, Result<Items>>) -> (Items, Duration) {
        let asked = tokio::time::Instant::now();
        tokio::select! {
            _ = asks => panic!("nobody answered"),
            statement = sent.recv() => (statement.unwrap().0, asked.elapsed()),
        }
    }

    #[tokio::test]
    async fn who_comes_while_a_statement_is_on_its_way_shares_the_next() {
        let (ask, mut sent) = tenant();
        let names: [&[&str]; 4] = [&["a"], &["b", "c"], &["d"], &["c"]];
        let mut asking = names.map(ask);
        for one in &mut asking {
            assert!(poll!(one).is_pending());
        }
        let (first, answer) = sent.try_recv().unwrap();
        assert_eq!(first, ["a"]);
        assert!(sent.try_recv().is_err(), "one at a time");
        answer.send(Ok(first)).unwrap();
        let [a, bc, d, c] = asking;
        assert_eq!(a.await.unwrap(), ["a"]);
        let answer = async {
            let (next, answer) = sent.recv().await.unwrap();
            assert_eq!(next, ["b", "c", "d", "c"]);
            answer.send(Ok(next)).unwrap();
        };
        let (bc, d, c, ()) = tokio::join!(bc, d, c, answer);
        for (answer, names) in [(bc, names[1]), (d, names[2]), (c, names[3])] {
            assert_eq!(answer.unwrap(), names);
        }
        assert!(sent.try_recv().is_err());
    }

    #[tokio::test]
    async fn who_goes_away_takes_nothing_from_the_others() {
        let (ask, mut sent) = tenant();
        let (mut first, mut second, mut third) = (ask(&["a"]), ask(&["b"]), ask(&["c"]));
        for one in [&mut first, &mut second, &mut third] {
            assert!(poll!(one).is_pending());
        }
        // Whose statement was on its way, and who was the first to wait for the next.
        drop((first, second));
        let mut third = pin!(third);
        assert!(poll!(&mut third).is_pending());
        let (gone, _) = sent.try_recv().unwrap();
        assert_eq!(gone, ["a"]);
        let (next, answer) = sent.try_recv().unwrap();
        answer.send(Ok(next)).unwrap();
        let Poll::Ready(Ok(found)) = poll!(third) else { panic!("it has its answer") };
        assert_eq!(found, ["c"]);
        // When all have gone, nothing is left of them.
        let (mut fourth, mut fifth) = (ask(&["d"]), ask(&["e"]));
        assert!(poll!(&mut fourth).is_pending() && poll!(&mut fifth).is_pending());
        drop((fourth, fifth));
        let mut sixth = ask(&["f"]);
        assert!(poll!(&mut sixth).is_pending());
        let (of_fourth, of_sixth) = (sent.try_recv().unwrap(), sent.try_recv().unwrap());
        assert_eq!((of_fourth.0, of_sixth.0), (vec!["d"], vec!["f"]));
    }

    #[tokio::test]
    async fn a_statement_that_is_stuck_holds_nobody_up_for_long() {
        let (ask, mut sent) = tenant();
        let mut stuck = ask(&["a"]);
        assert!(poll!(&mut stuck).is_pending());
        let (_, _never_answered) = sent.try_recv().unwrap();
        let (next, waited) = sent_after(&mut sent, &mut ask(&["b"])).await;
        assert_eq!(next, ["b"]);
        assert!(waited >= PATIENCE, "{waited:?}");
    }

    #[tokio::test]
    async fn an_error_is_everybodys_and_a_full_statement_is_followed_by_another() {
        let (ask, mut sent) = tenant();
        let many = ["x"; ITEMS];
        let mut asking = [ask(&["a"]), ask(&many), ask(&["b"]), ask(&["c"])];
        for one in &mut asking {
            assert!(poll!(one).is_pending());
        }
        let answer = async {
            for expected in [&["a"][..], &many, &["b", "c"]] {
                let (next, answer) = sent.recv().await.unwrap();
                assert_eq!(next, expected);
                answer.send(Err(Error::unavailable("database_unavailable", "gone"))).unwrap();
            }
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(asking), answer);
        assert_eq!(answers.len(), 4);
        for answer in answers {
            assert_eq!(answer.unwrap_err().code(), "database_unavailable");
        }
    }

    #[tokio::test]
    async fn tenants_share_nothing() {
        let together = Together::default();
        let asks = |tenant: &'static str| {
            let together: Together<_, Items> = together.clone();
            async move {
                let send = async move |items: Items| {
                    assert_eq!(items, [tenant]);
                    tokio::task::yield_now().await;
                    Ok(items)
                };
                together.ask(&TenantId::from_row(tenant), &[tenant], send, |_, from| from).await.unwrap()
            }
        };
        assert_eq!(tokio::join!(asks("a"), asks("b"), asks("a"), asks("b")), (0, 0, 0, 0));
    }
}
