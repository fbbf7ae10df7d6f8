package io.torrelque.example;

import io.grpc.Status;
import io.torrelque.v1.ItemError;
import io.torrelque.v1.ReleaseAction;
import io.torrelque.v1.Settlement;
import io.torrelque.v1.Task;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * The tasks in hand, from their delivery until the server has confirmed what became of them. They outlive the stream
 * that brought them: the work goes on, and the next stream begins with what there is to say. Used in the loop only.
 */
final class Hands {
    /** Before a settlement is sent again that could not be applied. */
    private static final Duration ITEM_RETRY = Duration.ofSeconds(1);

    private final Loop loop;
    private final Duration hold;
    private final Runnable onFewer;
    private final ExecutorService workers;
    private final Map<Job.Id, Job> jobs = new LinkedHashMap<>();

    /** What is said on it arrives, as long as it lasts; null between two streams. */
    private ConsumeStream stream;

    private int released;

    Hands(Loop loop, int threads, Duration hold, Runnable onFewer) {
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
        Events.print(new Events.Delivered(task.getTaskId(), task.getDequeueCount()));
        var job = new Job(task);
        jobs.put(job.id(), job);
        job.begin(workers.submit(() -> work(job, task)), loop.every(job.heartbeatInterval(), () -> extend(job)));
    }

    /** Runs in the pool. */
    private void work(Job job, Task task) {
        try {
            var action = Work.on(task.getPayload(), hold);
            loop.execute(() -> finished(job, action));
        } catch (InterruptedException dropped) {
            // The task is not ours any more, or the program ends.
        } catch (Error broken) {
            loop.execute(() -> {
                throw broken;
            });
        }
    }

    private void finished(Job job, ReleaseAction action) {
        job.finish(action);
        settle(job);
    }

    void abandon() {
        workers.shutdownNow();
    }

    // What is said

    /** The stream is open: settle what is done, and hear whether the rest is still ours. */
    void settleOn(ConsumeStream stream) {
        this.stream = stream;
        jobs.values().forEach(this::settle);
    }

    /** The stream is lost, and with it the answers that are due. */
    void settleLater() {
        stream = null;
    }

    private void settle(Job job) {
        if (canSettle(job)) {
            stream.settle(job.isFinished() ? job.nextRelease() : job.extension());
        }
    }

    private void extend(Job job) {
        if (canSettle(job)) {
            stream.settle(job.extension());
        }
    }

    private boolean canSettle(Job job) {
        return holds(job) && stream != null && !stream.isHalfClosed();
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
            Events.print(new Events.Extended(job.id().taskId()));
        }
    }

    void failed(Settlement settlement, ItemError error) {
        var job = jobs.get(Job.Id.of(settlement));
        if (job == null || job.isFinished() && !settlement.hasRelease()) {
            return; // The answer to its release decides.
        }
        var known = settlement.hasRelease() && job.isReleaseRepeated() ? error.getReason() : "";
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
        job.drop();
        onFewer.run();
    }
}
