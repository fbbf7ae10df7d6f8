package io.torrelque.example;

import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import io.torrelque.v1.ExtendLeaseResponse;
import io.torrelque.v1.ItemError;
import io.torrelque.v1.ReleaseAction;
import io.torrelque.v1.Settlement;
import io.torrelque.v1.Task;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * The tasks in hand, from their delivery until the server has confirmed what became of them. They outlive the stream
 * that brought them: the work goes on, and the next stream begins with what there is to say. Used in the loop only.
 */
final class Hands {
    /** Before a settlement is sent again that could not be applied. */
    private static final Duration ITEM_RETRY = Duration.ofSeconds(1);

    /** The task is not ours any more: its work is in vain. */
    private static final Set<String> LOST = Set.of("LEASE_LOST", "TASK_NOT_FOUND", "TASK_NOT_WORKING");

    private final Client client;
    private final Loop loop;
    private final Duration hold;
    private final Runnable onFewer;
    private final ExecutorService workers;
    private final Map<Job.Id, Job> jobs = new LinkedHashMap<>();

    /** What is said on it arrives, as long as it lasts; null between two streams. */
    private ConsumeStream stream;

    private int released;

    Hands(Client client, Loop loop, int threads, Duration hold, Runnable onFewer) {
        this.client = client;
        this.loop = loop;
        this.hold = hold;
        this.onFewer = onFewer;
        this.workers = Executors.newFixedThreadPool(threads, Loop::daemon);
    }

    boolean isEmpty() {
        return jobs.isEmpty();
    }

    /** All that is left are answers of the server. */
    boolean isWorkDone() {
        return jobs.values().stream().allMatch(Job::isFinished);
    }

    int released() {
        return released;
    }

    void take(Task task) {
        var came = System.nanoTime();
        Events.print(new Events.Delivered(task.getTaskId(), task.getDequeueCount()));
        var job = new Job(task);
        jobs.put(job.id(), job);
        Lease.Try extend = (failed, patience, extended) -> extend(job, failed, patience, extended);
        var lease = new Lease(loop, Wire.duration(task.getTimeout()), came, extend, () -> leaseEnds(job));
        job.keep(lease, workers.submit(() -> work(job, task)));
    }

    /** Runs in the pool. When the lease cannot be kept, the thread is interrupted. */
    private void work(Job job, Task task) {
        job.begin();
        try {
            var action = Work.on(task.getPayload(), hold);
            loop.execute(() -> finished(job, action));
        } catch (InterruptedException lost) {
            loop.execute(() -> stopped(job));
        } catch (Error broken) {
            loop.execute(() -> {
                throw broken;
            });
        }
    }

    private void finished(Job job, ReleaseAction action) {
        if (job.loss() != null) {
            stopped(job);
            return;
        }
        job.finish(action);
        settle(job);
    }

    /** The work was interrupted for the loss of its lease, and has ended: there is nothing to settle. */
    private void stopped(Job job) {
        if (holds(job)) {
            Events.print(job.loss());
            remove(job);
        }
    }

    private void lose(Job job, Events.Event loss) {
        if (holds(job) && job.loss() == null && !job.interrupt(loss)) {
            stopped(job);
        }
    }

    private void leaseEnds(Job job) {
        lose(job, new Events.Lost(job.id().taskId(), job.id().dequeueCount()));
    }

    void abandon() {
        workers.shutdownNow();
    }

    // What is said

    /** The stream is open: settle what is done. */
    void settleOn(ConsumeStream stream) {
        this.stream = stream;
        jobs.values().stream().filter(Job::isFinished).forEach(this::settle);
    }

    /** The stream is lost, and with it the answers that are due. */
    void settleLater() {
        stream = null;
        jobs.values().forEach(Job::forgetExtensions);
    }

    private void settle(Job job) {
        if (holds(job) && canSettle()) {
            stream.settle(job.nextRelease());
        }
    }

    /**
     * Asks once for a whole lease from now: on the stream, whose server knows then that the task is still in hand. If
     * that does not answer, by a call on a connection of its own, for the other one may have died without a word.
     */
    private void extend(Job job, boolean failed, Duration patience, Runnable extended) {
        Runnable done = () -> {
            Events.print(new Events.Extended(job.id().taskId()));
            extended.run();
        };
        if (failed || !canSettle()) {
            extendApart(job, patience, done);
        } else {
            stream.settle(job.extension(done));
        }
    }

    private void extendApart(Job job, Duration patience, Runnable extended) {
        var apart = client.another();
        var request = job.extensionApart().setQueue(client.queue()).build();
        apart.async(loop, patience).extendLease(request, new StreamObserver<>() {
            @Override
            public void onNext(ExtendLeaseResponse response) {
                extended.run();
            }

            @Override
            public void onError(Throwable thrown) {
                apart.drop();
                var reason = Failure.of(thrown).reason();
                if (reason != null && LOST.contains(reason)) {
                    lose(job, new Events.Refused(job.id().taskId(), reason));
                }
            }

            @Override
            public void onCompleted() {
                apart.drop();
            }
        });
    }

    private boolean canSettle() {
        return stream != null && !stream.isHalfClosed();
    }

    private boolean holds(Job job) {
        return jobs.get(job.id()) == job;
    }

    // What is heard

    void confirmed(Settlement settlement) {
        var job = jobs.get(Job.Id.of(settlement));
        if (job != null && settlement.hasRelease()) {
            released(job);
        } else if (job != null) {
            job.extensionAnswered(true);
        }
    }

    void failed(Settlement settlement, ItemError error) {
        var job = jobs.get(Job.Id.of(settlement));
        if (job == null) {
            return;
        }
        if (!settlement.hasRelease()) {
            notExtended(job, error.getReason());
            return;
        }
        var known = job.isReleaseRepeated() ? error.getReason() : "";
        switch (known) {
            // An earlier release may have been done, and its answer lost. Without a result nothing is left of such a
            // task; with one there is its final state.
            case "TASK_NOT_FOUND" -> released(job);
            case "TASK_NOT_WORKING" -> {
                if (isEndOf(job, error)) {
                    released(job);
                } else {
                    failed(job, error);
                }
            }
            default -> failed(job, error);
        }
    }

    private void notExtended(Job job, String reason) {
        job.extensionAnswered(false);
        // Where there is a release, the answer to that decides.
        if (LOST.contains(reason) && !job.isFinished()) {
            lose(job, new Events.Refused(job.id().taskId(), reason));
        }
    }

    private void failed(Job job, ItemError error) {
        switch (Status.fromCodeValue(error.getCode()).getCode()) {
            case UNAVAILABLE, UNKNOWN, RESOURCE_EXHAUSTED -> loop.after(ITEM_RETRY, () -> settle(job));
            default -> refused(job, error.getReason());
        }
    }

    private static boolean isEndOf(Job job, ItemError error) {
        return Wire.isFinal(error.getStatus()) && error.getDequeueCount() == job.id().dequeueCount();
    }

    private void released(Job job) {
        if (holds(job)) {
            Events.print(new Events.Released(job.id().taskId(), job.id().dequeueCount()));
            released++;
            remove(job);
        }
    }

    private void refused(Job job, String reason) {
        if (holds(job)) {
            Events.print(new Events.Refused(job.id().taskId(), reason));
            remove(job);
        }
    }

    private void remove(Job job) {
        jobs.remove(job.id());
        onFewer.run();
    }
}
