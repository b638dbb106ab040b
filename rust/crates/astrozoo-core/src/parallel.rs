//! Threads for one call.
//!
//! Threads live as long as the call. A pool that outlives it, such as rayon's, is gone in a forked child while its
//! handle is not, and the first parallel call in a data-loading worker would wait for ever. Starting a thread costs
//! about 20 microseconds, which kernels that run for milliseconds do not notice; `worth` keeps short calls on one.

use std::panic;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What `work` makes of each task, in the order of the tasks.
///
/// Tasks are handed out one at a time to at most `threads` threads, the calling one included. A panic in one of them
/// reaches the caller.
pub fn map<T: Send, R: Send>(threads: usize, tasks: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let workers = threads.min(tasks.len());
    if workers <= 1 {
        return tasks.into_iter().map(work).collect();
    }
    let queue = Mutex::new(tasks.into_iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut done = Vec::new();
        while let Some((index, task)) = next() {
            done.push((index, work(task)));
        }
        done
    };
    let mut results = thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(run)).collect();
        let mut results = run();
        for other in others {
            match other.join() {
                Ok(more) => results.extend(more),
                Err(payload) => panic::resume_unwind(payload),
            }
        }
        results
    });
    results.sort_unstable_by_key(|&(index, _)| index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// As many of `threads` as `work` keeps busy, when one should have at least `grain` of it.
pub fn worth(threads: usize, work: usize, grain: usize) -> usize {
    threads.min(work / grain.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_tasks() {
        for threads in [1, 2, 5, 100] {
            let squares = map(threads, (0..37).collect(), |i: u32| i * i);
            assert_eq!(squares, (0..37).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tasks_may_borrow_pieces_of_one_array() {
        let mut array = [0; 10];
        map(3, array.chunks_mut(3).enumerate().collect(), |(i, piece)| piece.fill(i));
        assert_eq!(array, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let caught = panic::catch_unwind(|| map(2, vec![0, 1, 2, 3], |i| assert_ne!(i, 2)));
        assert!(caught.is_err());
    }

    #[test]
    fn short_work_stays_on_one_thread() {
        assert_eq!(worth(8, 100, 1000), 1);
        assert_eq!(worth(8, 3000, 1000), 3);
        assert_eq!(worth(2, 1 << 30, 1000), 2);
    }
}
