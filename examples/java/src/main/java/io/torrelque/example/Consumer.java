package io.torrelque.example;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.torrelque.v1.ConsumeOpen;
import io.torrelque.v1.DisconnectPolicy;
import io.torrelque.v1.ItemError;
import io.torrelque.v1.RequeueRequest;
import io.torrelque.v1.Settlement;
import io.torrelque.v1.Task;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;

/**
 * Works through a queue, over as many streams as it takes. One thread, the loop, gets the server's messages, the ends
 * of work and the timers one after the other: all that is kept here and in Hands belongs to it, and needs no lock.
 */
final class Consumer implements ConsumeStream.Listener {
    /** It stops after so many tasks, or after so long without any. */
    record Settings(int credit, DisconnectPolicy policy, Duration hold, int until, Duration idle) {}

    /** For the answers that a consumer which is done may still wait for. */
    private static final Duration LAST_WORDS = Duration.ofSeconds(5);

    /** So many streams may be lost while we stop; what is not confirmed then is left to the server. */
    private static final int LAST_ATTEMPTS = 6;

    private static final Failure DRAINED =
            new Failure(Status.Code.UNAVAILABLE, "SERVER_DRAINING", Map.of(), "the server is stopping");

    private final Client client;
    private final Settings settings;
    private final Loop loop = new Loop(this::bug);
    private final Hands hands;
    private final CompletableFuture<Integer> end = new CompletableFuture<>();
    private final Backoff backoff = new Backoff();

    /** Null between two streams. */
    private ConsumeStream stream;

    private boolean draining;
    private boolean stopping;
    private int lostWhileStopping;
    private Future<?> idleTimer;

    Consumer(Client client, Settings settings) {
        this.client = client;
        this.settings = settings;
        this.hands = new Hands(client, loop, settings.credit(), settings.hold(), this::fewerInHand);
    }

    /** Returns the exit code when all is done. */
    int run() {
        loop.execute(this::restartIdleTimer);
        loop.execute(this::connect);
        try {
            return end.join();
        } finally {
            hands.abandon();
            loop.shutdownNow();
        }
    }

    /** Stops in order. May be called by any thread. */
    void stop() {
        loop.execute(this::beginStopping);
    }

    // Streams

    private void connect() {
        if (end.isDone()) {
            return;
        }
        client.connectAnew();
        var open = ConsumeOpen.newBuilder()
                .setQueue(client.queue())
                .setWorkerId(Client.WORKER_ID)
                .setMaxOutstandingTasks(settings.credit())
                .setDisconnectPolicy(settings.policy())
                .setProgressInterval(Wire.duration(Client.PROGRESS_INTERVAL))
                .build();
        stream = ConsumeStream.open(client, loop, open, this);
        if (stopping) {
            stream.credit(0);
        }
    }

    @Override
    public void opened(String consumerId) {
        Events.print(new Events.Opened(consumerId));
        hands.settleOn(stream);
    }

    @Override
    public void working() {
        backoff.reset(); // only now: a server that opens streams to drop them is not to be asked ten times a second
    }

    @Override
    public void delivered(Task task) {
        if (stream.isHalfClosed()) {
            giveBack(task);
        } else {
            hands.take(task);
        }
    }

    @Override
    public void confirmed(Settlement settlement) {
        hands.confirmed(settlement);
    }

    @Override
    public void failed(Settlement settlement, ItemError error) {
        hands.failed(settlement, error);
    }

    @Override
    public void draining(Duration grace) {
        draining = true;
        // Work that takes longer goes on, and is settled on the next stream.
        loop.after(grace.multipliedBy(9).dividedBy(10), stream::halfClose);
        closeIfDone();
    }

    @Override
    public void ended(Failure failure) {
        var cause = draining ? DRAINED : failure;
        stream = null;
        draining = false;
        hands.settleLater();
        lostWhileStopping += stopping ? 1 : 0;
        if (stopping && hands.isEmpty()) {
            finish(0);
        } else if (failure.isMistake() || lostWhileStopping >= LAST_ATTEMPTS && hands.isWorkDone()) {
            failure.report();
            finish(1);
        } else {
            var delay = backoff.next();
            System.err.println("torrelque-example: connecting again in " + delay.toMillis() + " ms after " + cause);
            Events.print(new Events.Reconnecting(cause.code().name(), cause.reason(), delay.toMillis() / 1000.0));
            loop.after(delay, this::connect);
        }
    }

    /** A task that was on its way when we closed: it need not wait for its lease to run out. */
    private void giveBack(Task task) {
        var request = RequeueRequest.newBuilder()
                .setQueue(client.queue())
                .setTaskId(task.getTaskId())
                .setDequeueCount(task.getDequeueCount())
                .build();
        try {
            client.blocking(LAST_WORDS).requeue(request);
        } catch (StatusRuntimeException failed) {
            System.err.println("torrelque-example: not given back: " + Failure.of(failed));
        }
    }

    // The end

    private void fewerInHand() {
        restartIdleTimer();
        if (hands.released() >= settings.until()) {
            beginStopping();
        }
        closeIfDone();
    }

    private void restartIdleTimer() {
        if (idleTimer != null) {
            idleTimer.cancel(false);
        }
        idleTimer = loop.after(settings.idle(), () -> {
            if (hands.isEmpty()) {
                beginStopping();
            }
        });
    }

    private void beginStopping() {
        if (!stopping) {
            stopping = true;
            if (stream != null) {
                stream.credit(0);
            }
            closeIfDone();
        }
    }

    /** When nothing is in hand and nothing more shall come, the server is told, and ends the stream. */
    private void closeIfDone() {
        if (!hands.isEmpty() || !stopping && !draining) {
            return;
        }
        if (stream == null) {
            finish(0);
            return;
        }
        stream.halfClose();
        if (stopping) {
            loop.after(LAST_WORDS, () -> finish(0));
        }
    }

    private void finish(int code) {
        if (end.isDone()) {
            return;
        }
        if (stream != null) {
            stream.cancel();
        }
        if (code == 0) {
            Events.print(new Events.Consumed(hands.released()));
        }
        end.complete(code);
    }

    /** What nobody expected ends the program: better than to hold leases without working. */
    private void bug(Throwable thrown) {
        thrown.printStackTrace();
        finish(1);
    }
}
