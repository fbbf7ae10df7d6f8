package io.torrelque.example;

import io.torrelque.v1.ExtendAction;
import io.torrelque.v1.ReleaseAction;
import io.torrelque.v1.Settlement;
import io.torrelque.v1.Task;
import java.time.Duration;
import java.util.concurrent.Future;

/** A delivery in hand: first it is worked on, then it waits for the server to confirm its release. */
final class Job {
    private static final Duration SHORTEST_HEARTBEAT = Duration.ofMillis(50);

    /** The number of the delivery belongs to it: a task that comes again is another job. */
    record Id(String taskId, int dequeueCount) {
        static Id of(Settlement settlement) {
            return new Id(settlement.getTaskId(), settlement.getDequeueCount());
        }
    }

    private final Id id;
    private final Duration lease;
    private Future<?> work;
    private Future<?> heartbeat;
    private Settlement release;
    private int releasesSent;

    Job(Task task) {
        id = new Id(task.getTaskId(), task.getDequeueCount());
        lease = Wire.duration(task.getTimeout());
    }

    Id id() {
        return id;
    }

    Duration heartbeatInterval() {
        var half = lease.dividedBy(2);
        return half.compareTo(SHORTEST_HEARTBEAT) < 0 ? SHORTEST_HEARTBEAT : half;
    }

    void begin(Future<?> work, Future<?> heartbeat) {
        this.work = work;
        this.heartbeat = heartbeat;
    }

    void finish(ReleaseAction action) {
        release = settlement().setRelease(action).build();
    }

    boolean isFinished() {
        return release != null;
    }

    Settlement extension() {
        return settlement().setExtend(ExtendAction.getDefaultInstance()).build();
    }

    Settlement nextRelease() {
        releasesSent++;
        return release;
    }

    /** An earlier release may have been done, and its answer lost. */
    boolean isReleaseRepeated() {
        return releasesSent > 1;
    }

    /** Interrupts the work if it is still going on. */
    void drop() {
        heartbeat.cancel(false);
        work.cancel(true);
    }

    private Settlement.Builder settlement() {
        return Settlement.newBuilder().setTaskId(id.taskId()).setDequeueCount(id.dequeueCount());
    }
}
