package io.torrelque.example;

import java.time.Duration;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** One thread that does what it is handed in order, or later: what only it touches needs no lock. */
final class Loop extends ScheduledThreadPoolExecutor {
    private final Consumer<Throwable> onBug;

    Loop(Consumer<Throwable> onBug) {
        // Once it is shut down, nothing that is still handed in matters.
        super(1, Loop::daemon, new DiscardPolicy());
        setRemoveOnCancelPolicy(true);
        this.onBug = onBug;
    }

    /** A thread that does not keep the program alive. */
    static Thread daemon(Runnable work) {
        var thread = new Thread(work);
        thread.setDaemon(true);
        return thread;
    }

    Future<?> after(Duration delay, Runnable step) {
        return schedule(step, delay.toNanos(), TimeUnit.NANOSECONDS);
    }

    /** By itself this kind of executor keeps silent about what is thrown. */
    @Override
    protected void afterExecute(Runnable step, Throwable thrown) {
        if (step instanceof Future<?> future && future.isDone() && !future.isCancelled()) {
            try {
                future.get();
            } catch (ExecutionException failed) {
                onBug.accept(failed.getCause());
            } catch (InterruptedException stopped) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
