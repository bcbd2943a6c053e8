"""Where each method leads on two quadratic tasks in the plane, exactly."""
