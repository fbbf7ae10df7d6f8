package main

import (
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/torrelque/torrelque/examples/go/gen/torrelque/v1"
)

// The reasons that this program acts upon; the contract in proto/ has them all.
const (
	reasonTaskNotFound   = "TASK_NOT_FOUND"
	reasonTaskNotWorking = "TASK_NOT_WORKING"
	reasonLeaseLost      = "LEASE_LOST"
	reasonOutcomeUnknown = "OUTCOME_UNKNOWN"
	reasonServerDraining = "SERVER_DRAINING"
)

// failure is what the server said, in the words of the wire.
type failure struct {
	Code     string            `json:"code"`
	Reason   *string           `json:"reason"`
	Metadata map[string]string `json:"metadata"`
}

func errorEvent(err error) any {
	return struct {
		Event string `json:"event"`
		failure
	}{"error", describe(err)}
}

// describe reads the status of an error and its google.rpc.ErrorInfo.
func describe(err error) failure {
	said := status.Convert(err)
	described := failure{Code: codeName(said.Code()), Metadata: map[string]string{}}
	for _, detail := range said.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			described.Reason = &info.Reason
			if info.Metadata != nil {
				described.Metadata = info.Metadata
			}
		}
	}
	return described
}

// failureError makes an error of what was not said with a status of its own.
func failureError(c codes.Code, reason, message string) error {
	said := status.New(c, message)
	if reason == "" {
		return said.Err()
	}
	detailed, err := said.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "torrelque"})
	if err != nil {
		return said.Err()
	}
	return detailed.Err()
}

// errNoStream says that nothing can be said or heard on a stream now.
var errNoStream = status.Error(codes.Unavailable, "no stream")

// itemError is nil for nil.
func itemError(e *pb.ItemError) error {
	if e == nil {
		return nil
	}
	return failureError(codes.Code(e.GetCode()), e.GetReason(), e.GetMessage())
}

// codeName spells NOT_FOUND where Go says NotFound.
func codeName(c codes.Code) string { return code.Code(c).String() }

// isLost tells whether the server has said that a task is not ours any more.
func isLost(err error) bool {
	reason := describe(err).Reason
	if reason == nil {
		return false
	}
	return *reason == reasonLeaseLost || *reason == reasonTaskNotFound || *reason == reasonTaskNotWorking
}

// isOverSoon tells whether the same request may do later: the server is away, or has no room at present.
func isOverSoon(err error) bool {
	said := describe(err)
	return said.Code == "UNAVAILABLE" || said.Code == "RESOURCE_EXHAUSTED" && said.Reason != nil
}

// isPermanent tells whether the same request would be refused again.
func isPermanent(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}
