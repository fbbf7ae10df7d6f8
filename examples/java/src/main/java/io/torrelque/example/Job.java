package io.torrelque.example;

import io.torrelque.v1.ExtendAction;
import io.torrelque.v1.ExtendLeaseRequest;
import io.torrelque.v1.ReleaseAction;
import io.torrelque.v1.Settlement;
import io.torrelque.v1.Task;
import java.util.ArrayDeque;
import java.util.Queue;
import java.util.concurrent.Future;

/** A delivery in hand: first it is worked on, then it waits for the server to confirm its release. */
final class Job {
    /** The number of the delivery belongs to it: a task that comes again is another job. */
    record Id(String taskId, int dequeueCount) {
        static Id of(Settlement settlement) {
            return new Id(settlement.getTaskId(), settlement.getDequeueCount());
        }
    }

    private final Id id;

    /** Whoever asked for extensions on the stream and waits for the answers, in their order. */
    private final Queue<Runnable> extensions = new ArrayDeque<>();

    private Lease lease;
    private Future<?> work;
    private volatile boolean begun;
    private Events.Event loss;
    private Settlement release;
    private int releasesSent;

    Job(Task task) {
        id = new Id(task.getTaskId(), task.getDequeueCount());
    }

    Id id() {
        return id;
    }

    void keep(Lease lease, Future<?> work) {
        this.lease = lease;
        this.work = work;
    }

    /** Called by the thread that works on it. */
    void begin() {
        begun = true;
    }

    void finish(ReleaseAction action) {
        lease.stop();
        release = settlement().setRelease(action).build();
    }

    boolean isFinished() {
        return release != null;
    }

    Settlement extension(Runnable extended) {
        extensions.add(extended);
        return settlement().setExtend(ExtendAction.getDefaultInstance()).build();
    }

    ExtendLeaseRequest.Builder extensionApart() {
        return ExtendLeaseRequest.newBuilder().setTaskId(id.taskId()).setDequeueCount(id.dequeueCount());
    }

    /** The server has answered the first of the extensions. */
    void extensionAnswered(boolean isDone) {
        var extended = extensions.remove();
        if (isDone) {
            extended.run();
        }
    }

    /** The stream is gone, and the answers with it. */
    void forgetExtensions() {
        extensions.clear();
    }

    Settlement nextRelease() {
        releasesSent++;
        return release;
    }

    /** An earlier release may have been done, and its answer lost. */
    boolean isReleaseRepeated() {
        return releasesSent > 1;
    }

    /**
     * Interrupts the work, as it must not go on.
     *
     * @param loss what is to be said of it when the work has ended
     * @return whether there is work that will end
     */
    boolean interrupt(Events.Event loss) {
        this.loss = loss;
        lease.stop();
        work.cancel(true);
        return begun;
    }

    /** Why there is nothing to settle; null if there is. */
    Events.Event loss() {
        return loss;
    }

    private Settlement.Builder settlement() {
        return Settlement.newBuilder().setTaskId(id.taskId()).setDequeueCount(id.dequeueCount());
    }
}
