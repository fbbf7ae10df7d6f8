package io.torrelque.example;

import java.time.Duration;
import java.util.concurrent.Future;

/**
 * Keeps the lease of a task while it is worked on, and says in time when that fails. It knows until when the lease lasts
 * for sure, by the monotonic clock of this process. Used in the loop only.
 */
final class Lease {
    /** Asks once. */
    interface Try {
        /**
         * @param failed the last try has: then a new connection is worth its price
         * @param patience another try is made after it
         * @param extended to be run in the loop when the server says yes; a no is for others to act upon
         */
        void ask(boolean failed, Duration patience, Runnable extended);
    }

    // The work is stopped before the lease ends, by this part of it and at most by so long: it needs time to stop, and
    // two clocks do not run at quite the same rate.
    private static final int MARGIN_PART = 20;
    private static final Duration LONGEST_MARGIN = Duration.ofSeconds(1);

    private final Loop loop;
    private final Try extend;
    private final Runnable onEnd;
    private final long length;
    private final long margin;
    private long ends;
    private boolean failed;
    private boolean over;
    private Future<?> next;

    /**
     * Begins to keep a lease.
     *
     * @param asked when the task was asked for, by System.nanoTime: before the call of a Dequeue; of a stream, when the
     *     delivery came, which is as near as one can know
     * @param onEnd the lease is about to end and could not be extended: somebody else may have the task soon
     */
    Lease(Loop loop, Duration length, long asked, Try extend, Runnable onEnd) {
        this.loop = loop;
        this.extend = extend;
        this.onEnd = onEnd;
        this.length = length.toNanos();
        this.margin = Math.min(this.length / MARGIN_PART, LONGEST_MARGIN.toNanos());
        this.ends = asked + this.length;
        plan(asked + this.length / 2);
    }

    private void plan(long due) {
        next = loop.after(Duration.ofNanos(due - System.nanoTime()), this::tryOnce);
    }

    private void tryOnce() {
        var asked = System.nanoTime();
        var left = ends - asked;
        if (left <= margin) {
            over = true;
            onEnd.run();
            return;
        }
        // A try that hangs must not take all the time: another one begins when half of what is left has passed.
        var patience = Math.min(left / 2, left - margin);
        var again = failed;
        failed = true;
        plan(asked + patience);
        extend.ask(again, Duration.ofNanos(patience), () -> extended(asked));
    }

    private void extended(long asked) {
        if (over) {
            return;
        }
        // The server counts from some moment after it was asked, so this is on the safe side.
        ends = Math.max(ends, asked + length);
        failed = false;
        next.cancel(false);
        plan(ends - length / 2);
    }

    /** Lets it end. */
    void stop() {
        over = true;
        next.cancel(false);
    }
}
