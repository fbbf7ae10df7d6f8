package io.torrelque.example;

import com.google.gson.JsonElement;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import io.grpc.Context;
import io.grpc.Context.CancellableContext;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.torrelque.v1.Payload;
import io.torrelque.v1.TaskState;
import io.torrelque.v1.TaskStatus;
import io.torrelque.v1.WatchCursor;
import io.torrelque.v1.WatchRequest;
import java.io.IOException;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** Follows a task to its final state, over as many streams as it takes. */
final class Watch {
    private static final Duration LONGEST_SILENCE = Client.PROGRESS_INTERVAL.multipliedBy(3);

    private final Client client;
    private final String taskId;
    private final Optional<Duration> timeout;
    private final int mostStates;
    private final long begin = System.nanoTime();
    private final Backoff backoff = new Backoff();
    private final Loop timers = new Loop(Throwable::printStackTrace);

    /** The place to go on from, whatever becomes of the stream. */
    private WatchCursor cursor;
    private int states;
    private boolean finished;

    private Watch(Client client, String taskId, Optional<Duration> timeout, int mostStates) {
        this.client = client;
        this.taskId = taskId;
        this.timeout = timeout;
        this.mostStates = mostStates;
    }

    static int run(Options options) throws UsageException, IOException {
        var timeout = options.seconds("timeout");
        var mostStates = options.number("states", 1, Integer.MAX_VALUE).orElse(Integer.MAX_VALUE);
        try (var client = Client.open(options)) {
            new Watch(client, options.argument(), timeout, mostStates).follow();
        }
        return 0;
    }

    private void follow() {
        while (true) {
            try (var context = Context.current().withCancellation()) {
                // To leave the context cancels the call, should it still be there.
                context.run(() -> readStream(context));
                if (states == mostStates) {
                    Events.print(new Events.Cancelled());
                }
                return;
            } catch (StatusRuntimeException lost) {
                if (finished) {
                    return;
                }
                var failure = Failure.of(lost);
                if (!failure.isOverSoon()) {
                    throw lost;
                }
                pause(failure);
            }
        }
    }

    /** Ends when the server has sent all, or when we have seen enough. */
    private void readStream(CancellableContext context) {
        var stub = client.blocking();
        var request = WatchRequest.newBuilder()
                .setQueue(client.queue())
                .setTaskId(taskId)
                .setProgressInterval(Wire.duration(Client.PROGRESS_INTERVAL));
        if (cursor != null) {
            request.setCursor(cursor);
        }
        if (timeout.isPresent()) {
            var left = remaining();
            request.setTimeout(Wire.duration(left));
            // The server says WATCH_TIMEOUT; the deadline is for one that says nothing.
            stub = stub.withDeadlineAfter(left.plusSeconds(5).toNanos(), TimeUnit.NANOSECONDS);
        }
        var responses = stub.watch(request.build());
        var silence = patience(context);
        while (states < mostStates && responses.hasNext()) {
            silence.cancel(false);
            silence = patience(context);
            var response = responses.next();
            backoff.reset();
            if (response.hasCursor()) {
                cursor = response.getCursor();
            }
            if (response.hasState()) {
                show(response.getState());
            }
        }
    }

    /** Gives up a stream on which not even progress comes: it is dead, whatever its connection says. */
    private Future<?> patience(CancellableContext context) {
        var silent = Status.UNAVAILABLE.withDescription("the stream was silent for too long").asRuntimeException();
        return timers.after(LONGEST_SILENCE, () -> context.cancel(silent));
    }

    private void show(TaskState state) {
        states++;
        finished = Wire.isFinal(state.getStatus());
        var result = state.hasResult() ? json(state.getResult()) : null;
        Events.print(new Events.State(taskId, name(state), state.getDequeueCount(), result));
    }

    /** Enums are open: a newer server may send a number that we have no name for. */
    private static String name(TaskState state) {
        var status = state.getStatus();
        return status == TaskStatus.UNRECOGNIZED
                ? Integer.toString(state.getStatusValue())
                : status.name().substring("TASK_STATUS_".length());
    }

    private static JsonElement json(Payload result) {
        var text = result.getData().toStringUtf8();
        try {
            return Events.JSON.fromJson(text, JsonElement.class);
        } catch (JsonParseException notJson) {
            return new JsonPrimitive(text);
        }
    }

    private void pause(Failure failure) {
        var delay = backoff.next();
        if (timeout.isPresent() && delay.compareTo(remaining()) >= 0) {
            throw Status.DEADLINE_EXCEEDED.withDescription("no time is left after " + failure).asRuntimeException();
        }
        System.err.println("torrelque-example: watching again in " + delay.toMillis() + " ms after " + failure);
        try {
            Thread.sleep(delay.toMillis());
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            throw Status.CANCELLED.withCause(interrupted).asRuntimeException();
        }
        client.connectAnew();
    }

    private Duration remaining() {
        var left = timeout.orElseThrow().minusNanos(System.nanoTime() - begin);
        return left.isNegative() ? Duration.ZERO : left;
    }
}
