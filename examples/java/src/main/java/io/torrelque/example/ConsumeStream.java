package io.torrelque.example;

import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import io.torrelque.v1.ConsumeCredit;
import io.torrelque.v1.ConsumeOpen;
import io.torrelque.v1.ConsumeRequest;
import io.torrelque.v1.ConsumeResponse;
import io.torrelque.v1.ConsumeSettle;
import io.torrelque.v1.ConsumeSettled;
import io.torrelque.v1.ItemError;
import io.torrelque.v1.Settlement;
import io.torrelque.v1.Task;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.stream.Collectors;

/**
 * One Consume stream. A StreamObserver is not for several threads: this one is called, and calls its listener, in the
 * loop only.
 */
final class ConsumeStream implements ClientResponseObserver<ConsumeRequest, ConsumeResponse> {
    /** What is heard on a stream; `ended` comes last, and once. */
    interface Listener {
        void opened(String consumerId);

        /** Something was said after that. */
        void working();

        void delivered(Task task);

        void confirmed(Settlement settlement);

        void failed(Settlement settlement, ItemError error);

        void draining(Duration grace);

        void ended(Failure failure);
    }

    /** A message is refused if it is larger than 4 MiB; a settlement may hold a result of 1 MiB. */
    private static final int MOST_BYTES = 1 << 20;

    private static final int MOST_SETTLEMENTS = 500;
    private static final Duration LONGEST_SILENCE = Client.PROGRESS_INTERVAL.multipliedBy(3);

    private final Loop loop;
    private final Listener listener;
    private final List<Settlement> outbox = new ArrayList<>();

    /** What the server has not answered, by the sequence of the message: an answer lists failures by their index. */
    private final Map<Long, List<Settlement>> unanswered = new HashMap<>();

    private ClientCallStreamObserver<ConsumeRequest> requests;
    private Future<?> silence;
    private long sequence;
    private boolean halfClosed;
    private boolean ended;

    private ConsumeStream(Loop loop, Listener listener) {
        this.loop = loop;
        this.listener = listener;
    }

    static ConsumeStream open(Client client, Loop loop, ConsumeOpen open, Listener listener) {
        var stream = new ConsumeStream(loop, listener);
        client.async(loop).consume(stream);
        stream.send(ConsumeRequest.newBuilder().setOpen(open));
        stream.heard();
        return stream;
    }

    // What is said

    void credit(int tasks) {
        send(ConsumeRequest.newBuilder().setCredit(ConsumeCredit.newBuilder().setMaxOutstandingTasks(tasks)));
    }

    /** Sent with all that come while the loop is busy: under load one message carries many. */
    void settle(Settlement settlement) {
        outbox.add(settlement);
        if (outbox.size() == 1) {
            loop.execute(this::flush);
        }
    }

    private void flush() {
        var batch = new ArrayList<Settlement>();
        var bytes = 0;
        for (var settlement : outbox) {
            if (batch.size() == MOST_SETTLEMENTS || bytes + settlement.getSerializedSize() > MOST_BYTES) {
                send(batch);
                batch = new ArrayList<>();
                bytes = 0;
            }
            batch.add(settlement);
            bytes += settlement.getSerializedSize();
        }
        send(batch);
        outbox.clear();
    }

    private void send(List<Settlement> batch) {
        if (!batch.isEmpty()) {
            unanswered.put(++sequence, batch);
            var settle = ConsumeSettle.newBuilder().setSequence(sequence).addAllSettlements(batch);
            send(ConsumeRequest.newBuilder().setSettle(settle));
        }
    }

    private void send(ConsumeRequest.Builder request) {
        if (!halfClosed && !ended) {
            requests.onNext(request.build());
        }
    }

    /** We have no more to say; the server then ends the stream. */
    void halfClose() {
        if (!halfClosed && !ended) {
            flush();
            halfClosed = true;
            requests.onCompleted();
        }
    }

    boolean isHalfClosed() {
        return halfClosed;
    }

    void cancel() {
        requests.cancel("the consumer has ended", null);
    }

    // What is heard

    @Override
    public void beforeStart(ClientCallStreamObserver<ConsumeRequest> requests) {
        this.requests = requests;
    }

    @Override
    public void onNext(ConsumeResponse response) {
        if (ended) {
            return;
        }
        heard();
        if (!response.hasOpened()) {
            listener.working();
        }
        switch (response.getResponseCase()) {
            case OPENED -> listener.opened(response.getOpened().getConsumerId());
            case DELIVERY -> response.getDelivery().getTasksList().forEach(listener::delivered);
            case SETTLED -> settled(response.getSettled());
            case DRAINING -> listener.draining(Wire.duration(response.getDraining().getGrace()));
            case PROGRESS, RESPONSE_NOT_SET -> {
                // That it came was all there is to it; or it is newer than this program.
            }
        }
    }

    private void settled(ConsumeSettled answer) {
        var errors = answer.getErrorsList().stream().collect(Collectors.toMap(ItemError::getIndex, error -> error));
        var batch = unanswered.remove(answer.getSequence());
        for (int i = 0; batch != null && i < batch.size(); i++) {
            if (errors.containsKey(i)) {
                listener.failed(batch.get(i), errors.get(i));
            } else {
                listener.confirmed(batch.get(i));
            }
        }
    }

    @Override
    public void onError(Throwable lost) {
        end(Failure.of(lost));
    }

    @Override
    public void onCompleted() {
        end(Failure.of(Status.OK.withDescription("the server has ended the stream")));
    }

    /** A stream on which not even progress comes is dead, whatever its connection says. */
    private void heard() {
        if (silence != null) {
            silence.cancel(false);
        }
        silence = loop.after(LONGEST_SILENCE, () -> {
            end(Failure.of(Status.UNAVAILABLE.withDescription("the stream was silent for too long")));
            cancel();
        });
    }

    private void end(Failure failure) {
        if (!ended) {
            ended = true;
            silence.cancel(false);
            listener.ended(failure);
        }
    }
}
