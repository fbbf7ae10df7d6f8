package io.torrelque.example;

import com.google.gson.JsonElement;
import com.google.gson.JsonParseException;
import com.google.protobuf.ByteString;
import io.torrelque.v1.Payload;
import io.torrelque.v1.ReleaseRequest;
import java.io.IOException;

/** Ends one task, whoever holds it. */
final class Release {
    private Release() {}

    static int run(Options options) throws UsageException, IOException {
        var token = options.number("dequeue-count", 0, Integer.MAX_VALUE);
        var result = options.text("result");
        if (result.isPresent()) {
            requireJson(result.get());
        }
        try (var client = Client.open(options)) {
            var request = ReleaseRequest.newBuilder().setQueue(client.queue()).setTaskId(options.argument());
            token.ifPresent(request::setDequeueCount);
            result.map(ByteString::copyFromUtf8)
                    .ifPresent(data -> request.setResult(Payload.newBuilder().setData(data)));
            client.blocking(Client.UNARY_DEADLINE).release(request.build());
        }
        Events.print(new Events.Done(options.argument()));
        return 0;
    }

    private static void requireJson(String text) throws UsageException {
        try {
            if (Events.JSON.fromJson(text, JsonElement.class) != null) {
                return;
            }
        } catch (JsonParseException notJson) {
            // Said below.
        }
        throw new UsageException("--result: not JSON: " + text);
    }
}
