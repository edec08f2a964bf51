package appservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
)

const (
	// pingTimeout bounds a ping.
	pingTimeout = 15 * time.Second
	// maxPingAnswer bounds what is read of an answer to a ping, in bytes.
	maxPingAnswer = 4 << 10
)

type pingRequest struct {
	ID    string `path:"appserviceId"`
	TxnID string `json:"transaction_id"`
}

type pingResponse struct {
	DurationMS int64 `json:"duration_ms"`
}

type pingBody struct {
	TxnID string `json:"transaction_id,omitempty"`
}

// ping asks an application service whether it hears this server.
//
// Spec: client-server API v1.19, POST /appservice/{appserviceId}/ping; application-service API v1.19, "Pinging".
func (a *API) ping(ctx context.Context, by *httpapi.Caller, in *pingRequest) (*pingResponse, error) {
	if by.Appservice == nil || by.Appservice.ID != in.ID {
		return nil, mxerr.Forbidden("The access token is of another application service")
	}
	registration := a.set.byID(in.ID)
	if registration == nil || registration.URL == "" {
		return nil, mxerr.New(http.StatusBadRequest, "M_URL_NOT_SET", "The application service has no URL")
	}
	body, err := json.Marshal(pingBody{in.TxnID})
	if err != nil {
		return nil, fmt.Errorf("encode ping: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, registration.URL+"/_matrix/app/v1/ping", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make ping: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+registration.HSToken)
	request.Header.Set("Content-Type", "application/json")
	begin := time.Now()
	response, err := a.client.Do(request)
	if err != nil {
		return nil, pingError(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxPingAnswer))
	if err != nil {
		return nil, pingError(err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, mxerr.Newf(http.StatusBadGateway, "M_BAD_STATUS", "The application service answered with status %d", response.StatusCode).
			WithField("status", response.StatusCode).WithField("body", string(text))
	}
	return &pingResponse{time.Since(begin).Milliseconds()}, nil
}

// pingError tells a client why an application service did not answer.
func pingError(err error) error {
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return mxerr.New(http.StatusGatewayTimeout, "M_CONNECTION_TIMEOUT", "The application service did not answer in time").With(err)
	}
	return mxerr.New(http.StatusBadGateway, "M_CONNECTION_FAILED", "The application service cannot be reached").With(err)
}
