package mediaapi

import "context"

func (a *API) fetch(ctx context.Context, req *request) (*record, error) { return nil, errNotFound }
