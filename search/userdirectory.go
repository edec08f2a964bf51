package search

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/myelin-im/myelin/accounts"
	"github.com/myelin-im/myelin/internal/httpapi"
	"github.com/myelin-im/myelin/internal/mxerr"
	"github.com/myelin-im/myelin/roomserver"
	"github.com/myelin-im/myelin/search/words"
	"github.com/myelin-im/myelin/storage"
)

type usersRequest struct {
	Term  *string `json:"search_term"`
	Limit *int    `json:"limit"`
}

type usersResponse struct {
	Limited bool        `json:"limited"`
	Results []foundUser `json:"results"`
}

type foundUser struct {
	UserID      string `json:"user_id"`
	DisplayName string `json:"display_name,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`

	id int64
}

const (
	// defaultUsers and mostUsers are how many users are found at once.
	defaultUsers, mostUsers = 10, 100
	// userCandidates is how many of those that match equally well are compared.
	userCandidates = 200
	// maxSearcherRooms bounds the rooms of the searcher that count: the newest.
	maxSearcherRooms = 2000
)

// searchUsers: client-server API v1.19, POST /user_directory/search. Users who are called exactly so come first, then
// those who have the words, then those who have words that begin with them. The searcher is found by who is in a public room
// like everybody else there, but does not share other rooms with themselves.
func (a *API) searchUsers(ctx context.Context, by *httpapi.Caller, in *usersRequest) (*usersResponse, error) {
	if in.Term == nil {
		return nil, mxerr.MissingParam("Missing parameter search_term")
	}
	limit := defaultUsers
	if in.Limit != nil {
		if *in.Limit < 0 {
			return nil, mxerr.InvalidParam("limit must not be negative")
		}
		limit = min(*in.Limit, mostUsers)
	}
	a.index.await(ctx)
	visible, err := a.visibleUsers(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	found, err := a.findUsers(ctx, by.UserID, *in.Term, visible, limit+1)
	if err != nil {
		return nil, fmt.Errorf("search the user directory: %w", err)
	}
	out := &usersResponse{Limited: len(found) > limit, Results: found[:min(limit, len(found))]}
	return out, nil
}

// visibleUsers are the terms of which a user that the searcher may find has one.
func (a *API) visibleUsers(ctx context.Context, searcher string) ([]storage.Term, error) {
	rooms, err := a.rooms.UserRooms(ctx, searcher)
	if err != nil {
		return nil, err
	}
	terms := []storage.Term{{Text: everywhere}}
	for _, r := range slices.Backward(rooms) {
		if r.Membership == roomserver.Join && len(terms) <= maxSearcherRooms {
			terms = append(terms, storage.Term{Text: roomTerm(r.NID)})
		}
	}
	return terms, nil
}

// findUsers returns up to limit users, the best first.
func (a *API) findUsers(ctx context.Context, searcher, text string, visible []storage.Term, limit int) ([]foundUser, error) {
	asked, server := splitUser(text)
	wanted := words.Query(asked)
	found := []foundUser{}
	if len(wanted) == 0 {
		return found, nil
	}
	whole := words.Append(nil, asked)
	exact := storage.TermQuery{{{Text: wholeTerm(whole)}}, visible}
	var full, prefix storage.TermQuery
	for _, w := range wanted {
		for i, term := range w.Terms {
			last := i == len(w.Terms)-1
			full = append(full, []storage.Term{{Text: term, Prefix: w.Prefix}})
			prefix = append(prefix, []storage.Term{{Text: term, Prefix: last}})
		}
	}
	seen := map[int64]bool{}
	err := a.db.Read(ctx, func(tx *storage.Tx) error {
		found = found[:0]
		clear(seen)
		for _, q := range []storage.TermQuery{exact, append(full, visible), append(prefix, visible)} {
			if len(found) >= limit {
				break
			}
			level, err := matchingUsers(tx, q, max(limit, userCandidates))
			if err != nil {
				return err
			}
			level = slices.DeleteFunc(level, func(u foundUser) bool {
				_, its, _ := strings.Cut(u.UserID, ":")
				return seen[u.id] || !strings.HasPrefix(its, server)
			})
			if level, err = dropHidden(tx, level, searcher); err != nil {
				return err
			}
			sortUsers(level, asked)
			for _, u := range level {
				seen[u.id] = true
			}
			found = append(found, level...)
		}
		found = found[:min(limit, len(found))]
		return a.refresh(tx, found)
	})
	return found, err
}

// dropHidden takes the searcher out of the users that were found, unless everybody may find them.
func dropHidden(tx *storage.Tx, users []foundUser, searcher string) ([]foundUser, error) {
	at := slices.IndexFunc(users, func(u foundUser) bool { return u.UserID == searcher })
	if at < 0 {
		return users, nil
	}
	k, err := readUser(tx, searcher)
	if err != nil || slices.Contains(strings.Fields(k.terms), everywhere) {
		return users, err
	}
	return slices.Delete(users, at, at+1), nil
}

// splitUser takes a user id, or the beginning of one, apart; other text it leaves as it is.
func splitUser(text string) (localpart, server string) {
	id, ok := strings.CutPrefix(strings.TrimSpace(text), "@")
	if !ok {
		return text, ""
	}
	localpart, server, _ = strings.Cut(id, ":")
	return localpart, strings.ToLower(server)
}

func matchingUsers(tx *storage.Tx, q storage.TermQuery, limit int) ([]foundUser, error) {
	numbers, query := tx.Some(userTerms, q)
	rows := tx.Query(`SELECT u.id, u.user_id, u.name, u.avatar FROM (`+numbers+`) m
		JOIN directory_users u ON u.id = m.id`, query, int64(limit))
	var found []foundUser
	for rows.Next() {
		var u foundUser
		rows.Scan(&u.id, &u.UserID, &u.DisplayName, &u.AvatarURL)
		found = append(found, u)
	}
	return found, rows.Close()
}

// sortUsers orders users that match equally well: those whose names begin with what was asked, those that have a name,
// short names before long ones.
func sortUsers(users []foundUser, asked string) {
	asked = strings.ToLower(asked)
	begins := func(u foundUser) int {
		if strings.HasPrefix(strings.ToLower(u.DisplayName), asked) || strings.HasPrefix(u.UserID[1:], asked) {
			return 0
		}
		return 1
	}
	named := func(u foundUser) int {
		if u.DisplayName == "" && u.AvatarURL == "" {
			return 1
		}
		return 0
	}
	slices.SortFunc(users, func(a, b foundUser) int {
		return cmp.Or(begins(a)-begins(b), named(a)-named(b),
			utf8.RuneCountInString(a.DisplayName)-utf8.RuneCountInString(b.DisplayName), strings.Compare(a.UserID, b.UserID))
	})
}

// refresh gives local users the profiles that they have by now.
func (a *API) refresh(tx *storage.Tx, users []foundUser) (err error) {
	for i := range users {
		u := &users[i]
		if !a.rooms.IsLocal(u.UserID) {
			continue
		}
		if u.DisplayName, u.AvatarURL, err = accounts.MemberProfile(tx, u.UserID); err != nil {
			return err
		}
	}
	return nil
}
