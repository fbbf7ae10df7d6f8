package io.torrelque.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.util.List;
import java.util.Map;

/** Why a call ended: the status, and the ErrorInfo that the server put into its details. */
record Failure(Status.Code code, String reason, Map<String, String> metadata, String message) {
    static Failure of(Throwable thrown) {
        var status = Status.fromThrowable(thrown);
        var info = errorInfo(thrown);
        return info == null
                ? of(status)
                : new Failure(status.getCode(), info.getReason(), info.getMetadataMap(), status.getDescription());
    }

    static Failure of(Status status) {
        var cause = status.getCause() == null ? "" : " (" + status.getCause().getMessage() + ")";
        return new Failure(status.getCode(), null, Map.of(), status.getDescription() + cause);
    }

    private static ErrorInfo errorInfo(Throwable thrown) {
        var status = StatusProto.fromThrowable(thrown);
        for (var detail : status == null ? List.<Any>of() : status.getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                try {
                    return detail.unpack(ErrorInfo.class);
                } catch (InvalidProtocolBufferException malformed) {
                    return null;
                }
            }
        }
        return null;
    }

    /** The caller is at fault, and the same call would fail again. */
    boolean isMistake() {
        return switch (code) {
            case INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED, NOT_FOUND, UNIMPLEMENTED -> true;
            default -> false;
        };
    }

    /** The connection is lost: grpc-java says that in two ways, the second without a reason of the server's. */
    boolean isLoss() {
        return code == Status.Code.UNAVAILABLE || code == Status.Code.UNKNOWN && reason == null;
    }

    /** The same call may do later: the connection is lost, or the server has no room at present. */
    boolean isOverSoon() {
        return isLoss() || code == Status.Code.RESOURCE_EXHAUSTED && reason != null;
    }

    void report() {
        System.err.println("torrelque-example: " + this);
        Events.print(new Events.Error(code.name(), reason, metadata));
    }

    @Override
    public String toString() {
        return code + (reason == null ? "" : "/" + reason) + ": " + message;
    }
}
