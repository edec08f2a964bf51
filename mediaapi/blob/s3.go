package blob

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Config names a bucket.
type S3Config struct {
	// Endpoint is the server as a URL, https://s3.example.org; its path is not used.
	Endpoint string
	// Region of the bucket; empty: the server is asked.
	Region string
	// Bucket must exist. Prefix stands before every key.
	Bucket, Prefix string
	// AccessKey and SecretKey sign requests.
	AccessKey, SecretKey string
	// PathStyle puts the bucket into the path and not into the host's name.
	PathStyle bool
	// Redirect lets clients fetch from the bucket themselves.
	Redirect bool
}

// S3 is a bucket.
type S3 struct {
	cfg    S3Config
	client *minio.Client
}

const (
	// partSize is the size of the pieces in which a large file is sent, in bytes. They are read from the disk and not held
	// in memory.
	partSize = 16 << 20
	// partsAtOnce is how many pieces are sent at the same time.
	partsAtOnce = 2
)

// NewS3 checks that the bucket is there.
func NewS3(ctx context.Context, cfg S3Config) (*S3, error) {
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%q is no URL of an S3 server", cfg.Endpoint)
	}
	lookup := minio.BucketLookupDNS
	if cfg.PathStyle {
		lookup = minio.BucketLookupPath
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Secure: u.Scheme == "https", Region: cfg.Region, BucketLookup: lookup,
	})
	if err != nil {
		return nil, fmt.Errorf("set up the S3 client: %w", err)
	}
	client.SetAppInfo("Myelin", "")
	found, err := client.BucketExists(ctx, cfg.Bucket)
	if err != nil {
		return nil, fmt.Errorf("look for bucket %s: %w", cfg.Bucket, err)
	}
	if !found {
		return nil, fmt.Errorf("there is no bucket %s", cfg.Bucket)
	}
	return &S3{cfg, client}, nil
}

// name spreads the keys: servers divide a bucket by the beginnings of names.
func (s *S3) name(key string) (string, error) {
	if !ValidKey(key) {
		return "", fmt.Errorf("blob: %.100q is no key", key)
	}
	return strings.TrimSuffix(s.cfg.Prefix, "/") + strings.Repeat("/", min(len(s.cfg.Prefix), 1)) + key[:2] + "/" + key, nil
}

// Put sends a spool, in pieces if it is large.
func (s *S3) Put(ctx context.Context, spool *Spool) error {
	name, err := s.name(spool.key)
	if err != nil {
		return err
	}
	var content io.Reader = io.NewSectionReader(spool.file, 0, spool.size)
	if spool.size == 0 {
		content = bytes.NewReader(nil) // which net/http knows to be empty
	}
	_, err = s.client.PutObject(ctx, s.cfg.Bucket, name, content, spool.size, minio.PutObjectOptions{
		ContentType: "application/octet-stream", PartSize: partSize, NumThreads: partsAtOnce,
		DisableContentSha256: true, // signing every piece of it is for connections without TLS, and not known everywhere
	})
	if err != nil {
		return fmt.Errorf("send a file to the bucket: %w", err)
	}
	return nil
}

// Open opens an object. It is read from the server as it is read here.
func (s *S3) Open(ctx context.Context, key string) (Object, error) {
	name, err := s.name(key)
	if err != nil {
		return nil, err
	}
	o, err := s.client.GetObject(ctx, s.cfg.Bucket, name, minio.GetObjectOptions{})
	if err != nil {
		return nil, fmt.Errorf("open an object: %w", err)
	}
	if _, err := o.Stat(); err != nil {
		_ = o.Close()
		if minio.ToErrorResponse(err).StatusCode == http.StatusNotFound {
			return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
		}
		return nil, fmt.Errorf("open an object: %w", err)
	}
	return o, nil
}

// Remove removes an object.
func (s *S3) Remove(ctx context.Context, key string) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	if err := s.client.RemoveObject(ctx, s.cfg.Bucket, name, minio.RemoveObjectOptions{}); err != nil {
		return fmt.Errorf("remove an object: %w", err)
	}
	return nil
}

// URL signs a URL of the object.
func (s *S3) URL(ctx context.Context, key string, link Link) (string, error) {
	if !s.cfg.Redirect {
		return "", nil
	}
	name, err := s.name(key)
	if err != nil {
		return "", err
	}
	u, err := s.client.PresignedGetObject(ctx, s.cfg.Bucket, name, link.For, url.Values{
		"response-content-type": {link.Type}, "response-content-disposition": {link.Disposition},
	})
	if err != nil {
		return "", fmt.Errorf("sign a URL: %w", err)
	}
	return u.String(), nil
}
