package directory

import (
	"context"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver/pdu"
)

const (
	defaultPage = 100
	maxPage     = 500
	// maxTypes bounds the room types of a filter, and maxTerm the bytes of a search term.
	maxTypes = 50
	maxTerm  = 1000
)

type getPublicRoomsRequest struct {
	Limit  int    `query:"limit" min:"0"`
	Since  string `query:"since"`
	Server string `query:"server"`
}

type searchPublicRoomsRequest struct {
	Server   string       `query:"server"`
	Limit    int          `json:"limit"`
	Since    string       `json:"since"`
	Filter   publicFilter `json:"filter"`
	All      bool         `json:"include_all_networks"`
	Instance string       `json:"third_party_instance_id"`
}

type publicFilter struct {
	Term string `json:"generic_search_term"`
	// Types are the wanted types of rooms; nil stands for rooms without one.
	Types []*string `json:"room_types"`
}

type publicRoomsResponse struct {
	Chunk     []*published `json:"chunk"`
	NextBatch string       `json:"next_batch,omitempty"`
	PrevBatch string       `json:"prev_batch,omitempty"`
	Total     int          `json:"total_room_count_estimate"`
}

// getPublicRooms: client-server API v1.19, GET /publicRooms.
func (a *API) getPublicRooms(ctx context.Context, by *httpapi.Caller, in *getPublicRoomsRequest) (*publicRoomsResponse, error) {
	if in.Server != "" && in.Server != a.rooms.Name() && by.UserID == "" {
		return nil, mxerr.MissingToken() // strangers cannot have us ask other servers
	}
	return a.publicRooms(ctx, &searchPublicRoomsRequest{Server: in.Server, Limit: in.Limit, Since: in.Since})
}

// searchPublicRooms: client-server API v1.19, POST /publicRooms.
func (a *API) searchPublicRooms(ctx context.Context, _ *httpapi.Caller, in *searchPublicRoomsRequest) (*publicRoomsResponse, error) {
	switch {
	case in.Limit < 0:
		return nil, mxerr.InvalidParam("limit must not be negative")
	case in.All && in.Instance != "":
		return nil, mxerr.InvalidParam("third_party_instance_id and include_all_networks exclude each other")
	case len(in.Filter.Types) > maxTypes:
		return nil, mxerr.InvalidParam("Too many room types")
	case len(in.Filter.Term) > maxTerm:
		return nil, mxerr.InvalidParam("The search term is too long")
	}
	return a.publicRooms(ctx, in)
}

func (a *API) publicRooms(ctx context.Context, in *searchPublicRoomsRequest) (*publicRoomsResponse, error) {
	if in.Server != "" && in.Server != a.rooms.Name() {
		if !pdu.ValidServerName(in.Server) {
			return nil, mxerr.InvalidParam("server is not a server name")
		}
		return a.remotePublicRooms(ctx, in)
	}
	at, err := parsePlace(in.Since)
	if err != nil {
		return nil, err
	}
	all, err := a.index.current(ctx)
	if err != nil {
		return nil, err
	}
	matching := make([]*listing, 0, len(all))
	wanted := in.matcher()
	for _, l := range all {
		if wanted(l) {
			matching = append(matching, l)
		}
	}
	limit := in.Limit
	if limit == 0 {
		limit = defaultPage
	}
	return page(matching, at, min(limit, maxPage)), nil
}

// matcher tells which rooms a request asks for.
func (in *searchPublicRoomsRequest) matcher() func(*listing) bool {
	term := strings.ToLower(strings.ReplaceAll(in.Filter.Term, "\x00", ""))
	return func(l *listing) bool {
		switch {
		case in.Instance != "":
			if !slices.ContainsFunc(l.networks, func(n network) bool { return n.named(in.Instance) }) {
				return false
			}
		case !in.All && !l.own:
			return false
		}
		if in.Filter.Types != nil && !slices.ContainsFunc(in.Filter.Types, func(t *string) bool {
			return t == nil && l.RoomType == "" || t != nil && *t != "" && *t == l.RoomType
		}) {
			return false
		}
		return strings.Contains(l.search, term)
	}
}

// place is where a page begins or ends: after, or with back before, where a room with these properties stands.
type place struct {
	set    bool
	back   bool
	joined int
	roomID string
}

var errBadSince = mxerr.InvalidParam("since is not a token of this endpoint")

func parsePlace(token string) (p place, err error) {
	if token == "" {
		return p, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return p, errBadSince
	}
	direction, rest, _ := strings.Cut(string(raw), " ")
	joined, roomID, ok := strings.Cut(rest, " ")
	n, err := strconv.Atoi(joined)
	if !ok || err != nil || direction != "f" && direction != "b" {
		return p, errBadSince
	}
	return place{true, direction == "b", n, roomID}, nil
}

func (l *listing) place(direction string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(direction + " " + strconv.Itoa(l.Joined) + " " + l.RoomID))
}

// page cuts a page out of a sorted list.
func page(list []*listing, at place, limit int) *publicRoomsResponse {
	from, to := 0, len(list)
	if at.set {
		i, found := slices.BinarySearchFunc(list, at, func(l *listing, p place) int { return l.compare(p.joined, p.roomID) })
		if at.back {
			to = i
			from = max(0, to-limit)
		} else if from = i; found {
			from++
		}
	}
	to = min(to, from+limit)
	out := &publicRoomsResponse{Chunk: make([]*published, 0, to-from), Total: len(list)}
	for _, l := range list[from:to] {
		out.Chunk = append(out.Chunk, &l.published)
	}
	if from < to && to < len(list) {
		out.NextBatch = list[to-1].place("f")
	}
	if from < to && from > 0 {
		out.PrevBatch = list[from].place("b")
	}
	return out
}
