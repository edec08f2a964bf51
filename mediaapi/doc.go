// Package mediaapi is the content repository: uploads, downloads, thumbnails, media of other servers, previews of URLs,
// and what the operator decides about all of them.
//
// # What is stored where
//
// A row of media is an mxc:// URI. It names a blob, a file in the store (package blob: a folder or an S3 bucket). Equal
// content is stored once: media_blobs knows a blob by its SHA-256, and any number of rows may name it. Thumbnails are
// blobs as well, known by what they are thumbnails of.
//
// An upload is written to a temporary file while it is hashed, flushed to the disk, put into the store, and then the
// row is written; only then is it answered. If the process ends before the row is there, the next start finds the
// temporary file, which bears the blob's name, and removes both. A blob is removed by removing its row in media_blobs,
// in a transaction that sees that nothing names it, and then the file; its name is random in part, so that equal content
// that comes at the same time is stored beside it.
//
// No transfer holds more than a few hundred kilobytes in memory, whatever its size.
//
// # Who gets what
//
// The endpoints of client v1 ask for a user, those of federation v1 for a server. The unauthenticated ones serve what
// was stored while they were not frozen (Config.Frozen). Nothing is served inline that a browser might run. Restricted
// media (MSC3911, Config.Linking) is for those who see the event that it is attached to, and it is attached in the
// transaction that writes the event.
//
// # Media of other servers
//
// It is fetched once for all who ask at the same time, into a temporary file like an upload. Large files are passed on
// while they arrive; the last part is held back until everything is there and known to be what was announced.
//
// Spec: client-server API v1.19 "Content repository"; server-server API v1.19 "Content Repository"; MSC3911, MSC4452.
package mediaapi
