package ephemeral

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/myelin-im/myelin/internal/canonicaljson"
)

// AppendReceiptEvents appends receipts, which it sorts, as m.receipt events separated by commas: one for each
// thread, since an event holds only one receipt of a user for an event.
//
// Spec: client-server API v1.19, m.receipt.
func AppendReceiptEvents(dst []byte, receipts []Receipt) []byte {
	slices.SortFunc(receipts, func(a, b Receipt) int {
		return cmp.Or(cmp.Compare(a.Thread, b.Thread), cmp.Compare(a.EventID, b.EventID), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.User, b.User))
	})
	var last *Receipt
	for i := range receipts {
		r := &receipts[i]
		switch {
		case last == nil:
			dst = append(dst, `{"content":{`...)
			dst = appendReceiptKeys(dst, r)
		case last.Thread != r.Thread:
			dst = append(dst, `}}},"type":"m.receipt"},{"content":{`...)
			dst = appendReceiptKeys(dst, r)
		case last.EventID != r.EventID:
			dst = append(dst, `}},`...)
			dst = appendReceiptKeys(dst, r)
		case last.Kind != r.Kind:
			dst = append(dst, `},`...)
			dst = appendReceiptKind(dst, r)
		default:
			dst = append(dst, ',')
		}
		dst = appendReceiptUser(dst, r)
		last = r
	}
	if last != nil {
		dst = append(dst, `}}},"type":"m.receipt"}`...)
	}
	return dst
}

func appendReceiptKeys(dst []byte, r *Receipt) []byte {
	dst = canonicaljson.AppendString(dst, r.EventID)
	return appendReceiptKind(append(dst, `:{`...), r)
}

func appendReceiptKind(dst []byte, r *Receipt) []byte {
	if r.Kind == Private {
		return append(dst, `"m.read.private":{`...)
	}
	return append(dst, `"m.read":{`...)
}

func appendReceiptUser(dst []byte, r *Receipt) []byte {
	dst = append(canonicaljson.AppendString(dst, r.User), `:{"ts":`...)
	dst = strconv.AppendInt(dst, r.TS, 10)
	if r.Thread != Unthreaded {
		dst = canonicaljson.AppendString(append(dst, `,"thread_id":`...), r.Thread)
	}
	return append(dst, '}')
}
